package node

import (
	"path/filepath"

	"github.com/culvert-mesh/culvert/e2e/kind/binaries"
	"github.com/culvert-mesh/culvert/e2e/kind/image"
)

// kubernetesImages lists the images that kubeadm asks for, under the names it asks for.
func kubernetesImages(debian, pause string, set binaries.Set) ([]image.Image, error) {
	programs := image.NewLayer()
	for _, name := range []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		if name == "kube-apiserver" {
			programs.AddFile("/usr/local/bin/"+name, set.Path(name))
			continue
		}
		programs.AddLink("/usr/local/bin/"+name, "kube-apiserver")
	}
	iptables := image.NewLayer()
	if err := iptables.AddTree(filepath.Join(debian, "proxy")); err != nil {
		return nil, err
	}
	path := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	kube := func(name string, layers ...*image.Layer) image.Image {
		return image.Image{
			Names:  []string{"registry.k8s.io/" + name + ":" + binaries.KubernetesVersion},
			Layers: layers, Config: image.Config{Env: path},
		}
	}
	return []image.Image{
		kube("kube-apiserver", programs),
		kube("kube-controller-manager", programs),
		kube("kube-scheduler", programs),
		kube("kube-proxy", programs, iptables),
		{
			Names:  []string{"registry.k8s.io/etcd:3.6.5-0"},
			Layers: []*image.Layer{image.NewLayer().AddFile("/usr/local/bin/etcd", set.Path("etcd"))},
			Config: image.Config{Env: path},
		},
		{
			Names:  []string{"registry.k8s.io/coredns/coredns:v1.12.1"},
			Layers: []*image.Layer{image.NewLayer().AddFile("/coredns", set.Path("coredns"))},
			Config: image.Config{Entrypoint: []string{"/coredns"}},
		},
		{ // kubeadm's version of it, and the one in kind's containerd configuration
			Names:  []string{"registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause:3.10"},
			Layers: []*image.Layer{image.NewLayer().AddFile("/pause", pause)},
			Config: image.Config{Entrypoint: []string{"/pause"}, User: "65535:65535"},
		},
	}, nil
}

// nodeImage returns the image of the nodes themselves.
func nodeImage(name, rootfs string) image.Image {
	return image.Image{
		Names:  []string{name},
		Layers: []*image.Layer{image.ArchiveLayer(rootfs)},
		Config: image.Config{
			Entrypoint: []string{"/usr/local/bin/entrypoint", "/sbin/init"},
			Env:        []string{"container=docker", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			StopSignal: "SIGRTMIN+3", // to systemd, SIGTERM means to start itself anew
		},
	}
}
