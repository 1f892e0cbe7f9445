module github.com/culvert-mesh/culvert/e2e/spire

go 1.26.6

require (
	github.com/culvert-mesh/culvert v0.0.0
	github.com/spiffe/go-spiffe/v2 v2.9.0
	github.com/spiffe/spire v1.15.3
	github.com/spiffe/spire-api-sdk v1.15.3
	google.golang.org/grpc v1.85.0
)

require (
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	golang.org/x/time v0.15.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/culvert-mesh/culvert => ../..
