package cri

import (
	"context"
	"io"
	"strings"

	"github.com/evenkeel/evenkeel/cri/operator"
	"github.com/evenkeel/evenkeel/image"
)

func (t tools) Usage(context.Context) (operator.Usage, error) {
	usage := operator.Usage{Images: []operator.ImageUsage{}}
	for _, u := range t.s.Images.Usage() {
		usage.Images = append(usage.Images, operator.ImageUsage{ID: u.ID.String(), Shared: u.Shared, PulledAt: u.PulledAt, Artifact: u.Artifact})
	}
	return usage, nil
}

func (t tools) Export(ctx context.Context, req operator.ExportRequest, archive io.Writer) error {
	if len(req.Images) == 0 {
		return need("images", "")
	}
	return t.s.Images.Export(ctx, archive, req.Compression, req.Images...)
}

func (t tools) Explain(ctx context.Context, req operator.PullRequest) (operator.Explanation, error) {
	if err := need("image", req.Image); err != nil {
		return operator.Explanation{}, err
	}
	var auth *image.Auth
	if req.Auth != nil {
		given := image.Auth(*req.Auth)
		auth = &given
	}
	e, err := t.s.Images.Explain(ctx, req.Image, auth)
	if err != nil {
		return operator.Explanation{}, err
	}
	answer := operator.Explanation{Reference: e.Reference, Here: e.Here, Platform: e.Platform, HostsFile: e.HostsFile, Error: words(e.Error), Hosts: []operator.HostExplanation{}}
	for _, h := range e.Hosts {
		answer.Hosts = append(answer.Hosts, explainHost(h))
	}
	return answer, nil
}

func explainHost(h image.HostExplanation) operator.HostExplanation {
	x := operator.HostExplanation{
		URL: h.URL, Mirror: h.Mirror, Capabilities: []string{}, TLS: explainTLS(h), Headers: h.Headers, Credentials: h.Credentials,
		Digest: h.Digest.String(), Milliseconds: float64(h.Took.Microseconds()) / 1000, Error: words(h.Error),
	}
	if x.Credentials == "" {
		x.Credentials = "none"
	}
	if h.Resolve {
		x.Capabilities = append(x.Capabilities, "resolve")
	}
	if h.Pull {
		x.Capabilities = append(x.Capabilities, "pull")
	}
	return x
}

func explainTLS(h image.HostExplanation) string {
	if strings.HasPrefix(h.URL, "http://") {
		return "none: plain http"
	}
	parts := []string{"checked against the system's authorities"}
	if len(h.CA) > 0 {
		parts[0] += " and " + strings.Join(h.CA, ", ")
	}
	if h.SkipVerify {
		parts = []string{"not checked"}
	}
	if len(h.Client) > 0 {
		parts = append(parts, "client certificate "+strings.Join(h.Client, ", "))
	}
	if h.PlainAllowed {
		parts = append(parts, "plain http if the port does not speak TLS")
	}
	return strings.Join(parts, "; ")
}

func words(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (t tools) Check(ctx context.Context, req operator.CheckRequest) (operator.CheckResult, error) {
	report, err := t.s.Images.Check(ctx, req.Repair, nil)
	if err != nil {
		return operator.CheckResult{}, err
	}
	result := operator.CheckResult{Layers: report.Layers, Bytes: report.Bytes, Unverifiable: []string{}, Damages: []operator.Damage{}, Broken: []operator.BrokenImage{}}
	for _, id := range report.Unverifiable {
		result.Unverifiable = append(result.Unverifiable, id.String())
	}
	for _, d := range report.Damages {
		damage := operator.Damage{Layer: d.Layer.String(), Reason: d.Reason, Images: []string{}, Pods: t.s.Pods.StandingOn(d.Layer)}
		for _, img := range d.Images {
			damage.Images = append(damage.Images, called(img))
		}
		result.Damages = append(result.Damages, damage)
	}
	for _, b := range report.Broken {
		result.Broken = append(result.Broken, operator.BrokenImage{Image: called(b.Image), Reason: b.Reason})
	}
	return result, nil
}

// called is the name by which people know an image.
func called(img *image.Image) string {
	for _, names := range [][]string{img.Tags, img.Digests} {
		if len(names) > 0 {
			return names[0]
		}
	}
	return img.ID.String()
}
