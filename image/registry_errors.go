package image

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// hostsError is why none of a registry's hosts gave what was wanted. It names each host with its reason.
type hostsError struct {
	what   string
	hosts  []string
	causes []error
}

func (e *hostsError) add(host string, cause error) {
	e.hosts = append(e.hosts, host)
	e.causes = append(e.causes, cause)
}

func (e *hostsError) Error() string {
	var text strings.Builder
	for i, h := range e.hosts {
		if i > 0 {
			text.WriteString("; ")
		}
		fmt.Fprintf(&text, "%s: %v", h, e.causes[i])
	}
	return fmt.Sprintf("cannot get %s: %s", e.what, text.String())
}

// Is answers with one class for all hosts: unavailable if all were; otherwise what the last host said that did
// answer, which is the registry itself unless it was down.
func (e *hostsError) Is(target error) bool {
	for i := len(e.causes) - 1; i >= 0; i-- {
		if !errors.Is(e.causes[i], ErrUnavailable) {
			return errors.Is(e.causes[i], target)
		}
	}
	return target == ErrUnavailable
}

// statusError is an answer that is not the wanted one.
type statusError struct {
	code       int
	said       string // the registry's own words
	retryAfter time.Duration
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%d %s", e.code, http.StatusText(e.code))
	if e.said != "" {
		text += " (" + e.said + ")"
	}
	if e.retryAfter > longestWish {
		text += fmt.Sprintf("; it asks to be left alone for %v", e.retryAfter.Round(time.Second))
	}
	if e.code == http.StatusUnauthorized || e.code == http.StatusForbidden {
		text += "; the image may not exist, or it needs (other) credentials"
	}
	return text
}

func (e *statusError) Is(target error) bool { return target == classOf(e.code) }

func classOf(code int) error {
	switch {
	case code == http.StatusNotFound:
		return ErrNotFound
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return ErrDenied
	case code == http.StatusTooManyRequests, code >= 500:
		return ErrUnavailable
	}
	return nil
}

// refusal reads the error out of an answer and closes it.
func refusal(resp *http.Response) error {
	defer resp.Body.Close()
	err := &statusError{code: resp.StatusCode}
	var body struct {
		Errors errcode.Errors `json:"errors"`
	}
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 8<<10))
	if json.Unmarshal(text, &body) == nil && len(body.Errors) > 0 {
		err.said = body.Errors.Error()
	}
	err.retryAfter = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	return err
}

// retryAfter reads seconds or a date (RFC 9110, section 10.2.3). 0: nothing sensible is said.
func retryAfter(text string, now time.Time) time.Duration {
	if seconds, err := strconv.Atoi(text); err == nil {
		return max(0, time.Duration(min(seconds, 1<<31))*time.Second)
	}
	if date, err := http.ParseTime(text); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

// classed is an error that belongs to a sentinel and says so by itself.
type classed struct {
	error
	class error
}

func (e classed) Unwrap() error        { return e.error }
func (e classed) Is(target error) bool { return target == e.class }

// transport classifies what the client returned instead of an answer. It also takes the URL out of the text:
// where a registry redirects to a storage service, its query holds a credential.
func transport(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	var answer *errcode.ErrorResponse
	if errors.As(err, &answer) { // from a token server
		said := ""
		if len(answer.Errors) > 0 {
			said = answer.Errors.Error()
		}
		return fmt.Errorf("token server %s: %w", answer.URL.Host, &statusError{code: answer.StatusCode, said: said})
	}
	if errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return classed{errors.New("401 Unauthorized; the image may not exist, or it needs credentials"), ErrDenied}
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var unverified *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unverified) || errors.As(err, &unknown) {
		return fmt.Errorf("%w; name the authority in hosts.toml (ca) or set skip_verify", err)
	}
	if request == nil {
		return classed{err, ErrDenied} // the client could not authenticate
	}
	return classed{err, ErrUnavailable}
}

// broken classifies an error while reading an answer's body.
func broken(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return classed{err, ErrUnavailable}
}

// passing reports whether the same request may succeed in a moment. A host that cannot be reached or stays silent has
// already taken its time; the next one is asked instead.
func passing(err error) bool {
	var status *statusError
	if errors.As(err, &status) && status.retryAfter > longestWish {
		return false // the next host, or the caller's own patience, is the better choice
	}
	var dial *net.OpError
	var timeout interface{ Timeout() bool }
	return errors.Is(err, ErrUnavailable) &&
		!(errors.As(err, &dial) && dial.Op == "dial") && !(errors.As(err, &timeout) && timeout.Timeout())
}
