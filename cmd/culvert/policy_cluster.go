package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/culvert-mesh/culvert/agent/source/file"
)

const policyUserAgent = "culvert-policy"

// clusterPlace stands where a file's name would.
const clusterPlace = "cluster"

// read reads the manifests, or the cluster where there are none, and says on standard error what was wrong and what was
// passed over.
func (f *policyFlags) read(c *cobra.Command) (file.Result, error) {
	r, err := f.readAny(c)
	if err != nil {
		return r, err
	}
	noteUnread(c.ErrOrStderr(), r)
	return r, nil
}

func (f *policyFlags) readAny(c *cobra.Command) (file.Result, error) {
	if len(f.files) > 0 {
		return file.Read(f.files, c.InOrStdin()), nil
	}
	access := f.access
	access.UserAgent = policyUserAgent
	contents, err := f.readCluster(c.Context(), access)
	if err != nil {
		return file.Result{}, fmt.Errorf("%w (without a cluster: read manifests with -f FILE, -f FOLDER or -f - for standard input)", err)
	}
	r := file.Result{Contents: contents}
	for _, p := range contents.Problems {
		r.Errors = append(r.Errors, &file.Error{File: clusterPlace, Object: p.Object, Err: p.Err})
	}
	return r, nil
}
