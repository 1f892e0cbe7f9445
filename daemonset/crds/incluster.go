package crds

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// accountFolder is where Kubernetes puts a pod's token and the API server's root.
const accountFolder = "/var/run/secrets/kubernetes.io/serviceaccount"

// requestTimeout bounds one request.
const requestTimeout = 30 * time.Second

// InCluster is the API server of the cluster that this process is a pod of.
func InCluster() (API, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return API{}, errors.New("API server: KUBERNETES_SERVICE_HOST is not set: is this a pod?")
	}
	root, err := os.ReadFile(filepath.Join(accountFolder, "ca.crt"))
	if err != nil {
		return API{}, fmt.Errorf("API server's root: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(root) {
		return API{}, fmt.Errorf("API server's root: no certificate in %s/ca.crt", accountFolder)
	}
	return API{
		URL: "https://" + net.JoinHostPort(host, port),
		Client: &http.Client{Timeout: requestTimeout, Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		}},
		Token: func() (string, error) {
			token, err := os.ReadFile(filepath.Join(accountFolder, "token"))
			return strings.TrimSpace(string(token)), err
		},
	}, nil
}
