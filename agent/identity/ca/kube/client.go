// Package kube is what a CA needs of Kubernetes: who holds a token, which identities run on a node, and a place for
// the root and for the bundle.
package kube

import (
	"fmt"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Reviews, lists and writes have limits of their own; these are for what escapes them.
const (
	clientQPS   = 400
	clientBurst = 800
)

// Client is a connection to an API server.
type Client struct{ api kubernetes.Interface }

// NewClient connects to the API server that the kubeconfig file names, or without one to that of the cluster in
// which this process runs.
func NewClient(kubeconfig string) (*Client, error) {
	config, err := clientConfig(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = clientQPS, clientBurst
	config.UserAgent = "culvert-ca"
	config.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client of the API server: %w", err)
	}
	return &Client{client}, nil
}

// FromInterface makes a Client of one that is there already.
func FromInterface(api kubernetes.Interface) *Client { return &Client{api} }

func clientConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("in-cluster configuration: %w (outside a cluster, name a kubeconfig file)", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return config, nil
}
