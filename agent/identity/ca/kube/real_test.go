package kube

import (
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/culvert-mesh/culvert/agent/source/kube/apitest"
)

func TestStoreWithARealAPIServer(t *testing.T) {
	s := apitest.Start(t, nil)
	client := s.Client()
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &core.Namespace{ObjectMeta: meta.ObjectMeta{Name: namespace}},
		meta.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Run("bundle", func(t *testing.T) { checkBundle(t, client) })
	t.Run("changed Secret", func(t *testing.T) { checkSecretChange(t, client) })
}
