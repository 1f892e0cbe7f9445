package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	istio "istio.io/client-go/pkg/clientset/versioned"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	api "k8s.io/client-go/tools/clientcmd/api"
)

const (
	apiAddress   = "https://127.0.0.1:6443"
	etcdAddress  = "http://127.0.0.1:2379"
	serviceRange = "10.96.0.0/12"
	startTime    = time.Minute
)

// cluster is an API server with its etcd, and clients of it.
type cluster struct {
	place      *place
	etcd, api  *process
	token      string
	roots      []byte
	kubeconfig string

	core  *kubernetes.Clientset // protobuf
	istio *istio.Clientset      // JSON, as all custom resources
}

func (c *cluster) stop() {
	c.api.stop()
	c.etcd.stop()
}

// save stops everything, saves what is stored and starts everything again.
func (c *cluster) save(ctx context.Context, o options, to kept) error {
	c.stop()
	if err := to.save(c.etcdData()); err != nil {
		return err
	}
	return c.start(ctx, o)
}

func (c *cluster) start(ctx context.Context, o options) error {
	if err := c.startEtcd(ctx, o); err != nil {
		return err
	}
	if err := c.startAPI(ctx, o); err != nil {
		return err
	}
	return c.applyCRDs(ctx, o)
}

func (c *cluster) startEtcd(ctx context.Context, o options) (err error) {
	c.etcd, err = c.place.start(ctx, "etcd", nil, filepath.Join(o.binaries, "etcd"),
		"--data-dir", c.etcdData(), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls", etcdAddress, "--advertise-client-urls", etcdAddress,
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380", "--quota-backend-bytes=8589934592",
		"--snapshot-count=10000")
	return err
}

func (c *cluster) etcdData() string { return filepath.Join(c.place.data, "etcd") }

func (c *cluster) startAPI(ctx context.Context, o options) error {
	dir := c.place.data
	files, err := c.writeSecrets(dir)
	if err != nil {
		return err
	}
	certs := filepath.Join(dir, "apiserver")
	c.api, err = c.place.start(ctx, "kube-apiserver", nil, filepath.Join(o.binaries, "kube-apiserver"),
		"--etcd-servers="+etcdAddress, "--secure-port=6443", "--bind-address=127.0.0.1", "--cert-dir="+certs,
		"--advertise-address=10.77.0.1", "--endpoint-reconciler-type=none", // there is no interface to find an address on
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+files.key, "--service-account-signing-key-file="+files.key,
		"--token-auth-file="+files.tokens, "--authorization-mode=RBAC",
		"--service-cluster-ip-range="+serviceRange,
		"--disable-admission-plugins=ServiceAccount", // no controller makes the accounts
	)
	if err != nil {
		return err
	}
	if err := c.connect(ctx, certs); err != nil {
		return err
	}
	return c.api.await(ctx, startTime, "ready", func() bool { return c.ready(ctx) })
}

type secretFiles struct{ key, tokens string }

func (c *cluster) writeSecrets(dir string) (secretFiles, error) {
	files := secretFiles{filepath.Join(dir, "service-accounts.pem"), filepath.Join(dir, "tokens.csv")}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return files, fmt.Errorf("key for service accounts: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return files, fmt.Errorf("key for service accounts: %w", err)
	}
	c.token = rand.Text()
	return files, errors.Join(
		os.WriteFile(files.key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600),
		os.WriteFile(files.tokens, []byte(c.token+",scale,scale,system:masters\n"), 0o600))
}

// connect makes the clients once the API server has made itself a certificate.
func (c *cluster) connect(ctx context.Context, certs string) error {
	err := c.api.await(ctx, startTime, "in possession of a certificate", func() bool {
		var err error
		c.roots, err = os.ReadFile(filepath.Join(certs, "apiserver.crt"))
		return err == nil && len(c.roots) > 0
	})
	if err != nil {
		return err
	}
	c.kubeconfig = filepath.Join(c.place.data, "kubeconfig")
	config := api.NewConfig()
	config.Clusters["scale"] = &api.Cluster{Server: apiAddress, CertificateAuthorityData: c.roots}
	config.AuthInfos["scale"] = &api.AuthInfo{Token: c.token}
	config.Contexts["scale"] = &api.Context{Cluster: "scale", AuthInfo: "scale"}
	config.CurrentContext = "scale"
	if err := clientcmd.WriteToFile(*config, c.kubeconfig); err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	json := c.config()
	if c.istio, err = istio.NewForConfig(json); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	protobuf := c.config()
	protobuf.ContentType = "application/vnd.kubernetes.protobuf"
	if c.core, err = kubernetes.NewForConfig(protobuf); err != nil {
		return fmt.Errorf("client: %w", err)
	}
	return nil
}

func (c *cluster) config() *rest.Config {
	return &rest.Config{
		Host: apiAddress, BearerToken: c.token, TLSClientConfig: rest.TLSClientConfig{CAData: c.roots},
		Dial: c.place.dial, QPS: -1, UserAgent: "culvert-scale", Timeout: time.Minute,
	}
}

func (c *cluster) ready(ctx context.Context) bool {
	_, err := c.core.RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err == nil
}

func (c *cluster) applyCRDs(ctx context.Context, o options) error {
	kubectl := []string{filepath.Join(o.binaries, "kubectl"), "--kubeconfig", c.kubeconfig}
	if err := c.place.output(ctx, append(kubectl, "apply", "--server-side", "-k", o.crds)...); err != nil {
		return err
	}
	return c.place.output(ctx, append(kubectl, "wait", "--for=condition=Established", "--timeout=60s", "crd", "--all")...)
}
