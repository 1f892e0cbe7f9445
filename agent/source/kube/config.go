package kube

import (
	"fmt"
	"log/slog"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

// Config tells how the API server is reached: as the kubeconfig file says, or, without one, as a pod of the cluster
// does. userAgent is how requests name themselves in the API server's audit log.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	config, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = userAgent
	return config, nil
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("API server: %w (outside of a cluster name a kubeconfig file)", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("API server: kubeconfig %s: %w", kubeconfig, err)
	}
	return config, nil
}

// LogTo has the client libraries write what they log of themselves to log. It holds for the whole process.
func LogTo(log *slog.Logger) { klog.SetSlogLogger(log) }
