// Command etcd is etcd's server. It has a module of its own because its dependencies and those of Kubernetes differ.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
