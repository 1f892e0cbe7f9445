package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
)

const (
	defaultSocket  = "/run/culvert/cni.sock"
	defaultTimeout = 30 * time.Second
	// maxTimeout keeps the answer in time for the runtime: kubelet gives up on a sandbox after four minutes
	// and CRI-O on its network after five, and the plugins before this one have taken their share.
	maxTimeout = 90 * time.Second
	minTimeout = 100 * time.Millisecond
)

// config is the plugin's entry in the list, with what the runtime adds to it.
type config struct {
	types.PluginConf
	Socket  string `json:"socket"`
	Timeout string `json:"timeout"`
	// FailOpen lets pods start without enforcement while no agent answers.
	FailOpen bool `json:"failOpen"`
	// RequirePod fails containers that are no pods of Kubernetes, instead of leaving them alone.
	RequirePod bool `json:"requirePod"`

	timeout time.Duration
}

func readConfig(data []byte) (*config, error) {
	c := new(config)
	if err := json.Unmarshal(data, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "culvert-cni: configuration cannot be read", err.Error())
	}
	if c.Socket == "" {
		c.Socket = defaultSocket
	}
	if !filepath.IsAbs(c.Socket) {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "culvert-cni: socket is no absolute path", c.Socket)
	}
	c.timeout = defaultTimeout
	if c.Timeout != "" {
		d, err := time.ParseDuration(c.Timeout)
		if err != nil || d < minTimeout {
			return nil, types.NewError(types.ErrInvalidNetworkConfig,
				fmt.Sprintf("culvert-cni: timeout is no duration of at least %s", minTimeout), c.Timeout)
		}
		c.timeout = min(d, maxTimeout)
	}
	return c, nil
}

// previous returns the result of the plugins before this one; nil if there is none. It may be of another
// version than the configuration, when that was changed while the pod ran.
func (c *config) previous() (types.Result, error) {
	if c.RawPrevResult == nil {
		return nil, nil
	}
	if v, ok := c.RawPrevResult["cniVersion"].(string); !ok || v == "" {
		c.RawPrevResult["cniVersion"] = c.CNIVersion // before 1.0.0 a result need not tell
	}
	data, err := json.Marshal(c.RawPrevResult)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "culvert-cni: prevResult cannot be read", err.Error())
	}
	result, err := create.CreateFromBytes(data)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "culvert-cni: prevResult cannot be read", err.Error())
	}
	return result, nil
}

// podAddresses returns the addresses that the result gives to the sandbox.
func podAddresses(result types.Result) ([]netip.Addr, error) {
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "culvert-cni: prevResult cannot be converted", err.Error())
	}
	var addresses []netip.Addr
	for _, ip := range r.IPs {
		if ip == nil {
			continue
		}
		// A result may also list addresses of the host's end: those have an interface without a sandbox.
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) {
			if of := r.Interfaces[*i]; of != nil && of.Sandbox == "" {
				continue
			}
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			addresses = append(addresses, a.Unmap())
		}
	}
	return addresses, nil
}

// pod is what the runtime tells of the pod.
type pod struct{ namespace, name, uid string }

// readPod reads CNI_ARGS. found is false if nothing there is of Kubernetes: then the container is no pod, and
// there is nothing that policy could say of it. Arguments of Kubernetes that do not name a pod are an error,
// because that container may well be one.
func readPod(args string) (p pod, found bool, err error) {
	for pair := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(key, "K8S_") {
			continue
		}
		found = true
		switch key {
		case "K8S_POD_NAMESPACE":
			p.namespace = value
		case "K8S_POD_NAME":
			p.name = value
		case "K8S_POD_UID":
			p.uid = value
		}
	}
	if found && (p.namespace == "" || p.name == "") {
		return p, true, types.NewError(types.ErrInvalidEnvironmentVariables,
			"culvert-cni: CNI_ARGS has arguments of Kubernetes but not both K8S_POD_NAMESPACE and K8S_POD_NAME", args)
	}
	return p, found, nil
}

// errNoPrevious explains what is wrong with a list in which this plugin comes first.
func errNoPrevious(args *skel.CmdArgs) error {
	return types.NewError(types.ErrInvalidNetworkConfig,
		"culvert-cni: no prevResult: it has to come after the plugin that makes the pod's network", "container "+args.ContainerID)
}
