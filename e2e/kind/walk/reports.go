package walk

const redirection = "ambient.istio.io/redirection"

func reports() group { return group{name: "reports"} }
func openConnections() group { return group{name: "open"} }
func services() group { return group{name: "services"} }
func probes() group { return group{name: "probes"} }
func firstPackets() group { return group{name: "first"} }
func badInput() group { return group{name: "bad input"} }
func manyPolicies() group { return group{name: "many"} }
func rotation() group { return group{name: "rotation"} }
func restarts() group { return group{name: "restarts"} }
func nodeRestart() group { return group{name: "node"} }
func churn() group { return group{name: "churn"} }
