// Package bundlepb is the protocol by which a Culvert CA tells agents its roots.
package bundlepb

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative bundle.proto
