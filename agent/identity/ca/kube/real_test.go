package kube

import (
	"sync"
	"testing"
	"time"

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
	t.Run("replicas that start at once make one root", func(t *testing.T) {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := rotor(client, short()).catchUp(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		k, err := readKeyring(get(t, client, RootSecretName), get(t, client, SecretName))
		if err != nil || k.kind() != own || !k.state(time.Now()).Agrees || len(k.bundle) != 1 {
			t.Fatalf("%+v, %v", k, err)
		}
		for _, name := range []string{RootSecretName, SecretName} {
			if err := client.CoreV1().Secrets(namespace).Delete(t.Context(), name, meta.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("bundle in every namespace", func(t *testing.T) { checkDistribution(t, client) })
	t.Run("changed Secret", func(t *testing.T) { checkSecretChange(t, client) })
}
