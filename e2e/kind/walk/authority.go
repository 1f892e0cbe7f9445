package walk

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// metricsOfTheCA looks at what the panels about the CA show, which only one that is asked for something has: the test of
// the dashboards has no API server.
func metricsOfTheCA(ctx context.Context, s *suite) (string, error) {
	var pods podList
	if err := s.getJSON(ctx, &pods, "pods", "--namespace="+systemNamespace, "--selector=app.kubernetes.io/component=ca"); err != nil {
		return "", err
	}
	total := map[string]float64{}
	for _, p := range pods.Items {
		text, err := s.kubectl(ctx, "get", "--raw", fmt.Sprintf("/api/v1/namespaces/%s/pods/%s:15022/proxy/metrics", systemNamespace, p.Metadata.Name))
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(text) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
			if n, err := strconv.ParseFloat(value, 64); err == nil {
				total[name] += n
			}
		}
	}
	for _, name := range []string{"culvert_ca_request_seconds_count", "culvert_ca_token_review_seconds_count", `culvert_ca_bundle_namespaces{state="current"}`} {
		if total[name] == 0 {
			return "", fmt.Errorf("%s is 0, or missing, in %d pods", name, len(pods.Items))
		}
	}
	return fmt.Sprintf("%.0f requests, %.0f reviews, %.0f namespaces", total["culvert_ca_request_seconds_count"],
		total["culvert_ca_token_review_seconds_count"], total[`culvert_ca_bundle_namespaces{state="current"}`]), nil
}
