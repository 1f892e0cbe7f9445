// Command cli is kind's own command line, in a module of its own so that its version is pinned with its dependencies.
package main

import "sigs.k8s.io/kind/cmd/kind/app"

func main() { app.Main() }
