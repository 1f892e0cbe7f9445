package kube

import (
	"context"
	"errors"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// dying is a connection of a process that dies instead of making one write more.
type dying struct {
	kubernetes.Interface
	die    func() bool
	cancel context.CancelFunc
}

var errDied = errors.New("died")

func (d *dying) CoreV1() corev1.CoreV1Interface { return dyingCore{d.Interface.CoreV1(), d} }

type dyingCore struct {
	corev1.CoreV1Interface
	d *dying
}

func (c dyingCore) Secrets(namespace string) corev1.SecretInterface {
	return dyingSecrets{c.CoreV1Interface.Secrets(namespace), c.d}
}

type dyingSecrets struct {
	corev1.SecretInterface
	d *dying
}

func (s dyingSecrets) Create(ctx context.Context, o *core.Secret, options meta.CreateOptions) (*core.Secret, error) {
	if s.d.die() {
		s.d.cancel()
		return nil, errDied
	}
	return s.SecretInterface.Create(ctx, o, options)
}

func (s dyingSecrets) Update(ctx context.Context, o *core.Secret, options meta.UpdateOptions) (*core.Secret, error) {
	if s.d.die() {
		s.d.cancel()
		return nil, errDied
	}
	return s.SecretInterface.Update(ctx, o, options)
}
