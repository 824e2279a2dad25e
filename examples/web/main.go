// Command web is the example's only program: a tiny web server, and, by flag, the other containers of its pod. It is one
// static binary so that its image needs nothing else.
//
//	web                       serve HTTP on :8080
//	web -greet FILE           write a greeting into FILE and end: the init container
//	web -probe URL            fetch URL every few seconds and log the answers: the second container
//	web -get URL              fetch URL once and print the answer: for the demo, on machines without curl
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	listen := flag.String("listen", ":8080", "address to serve on")
	greeting := flag.String("greeting", "/shared/greeting", "file whose text begins every answer")
	greet := flag.String("greet", "", "write a greeting into this file and end")
	probe := flag.String("probe", "", "fetch this URL again and again")
	every := flag.Duration("every", 2*time.Second, "time between two fetches of -probe")
	get := flag.String("get", "", "fetch this URL once")
	retry := flag.Duration("retry", 0, "how long -get keeps trying")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	var err error
	switch {
	case *greet != "":
		err = writeGreeting(*greet)
	case *probe != "":
		err = watch(ctx, *probe, *every)
	case *get != "":
		err = fetchOnce(ctx, *get, *retry)
	default:
		err = serve(ctx, *listen, *greeting)
	}
	if err != nil {
		slog.Error("web ends", "error", err)
		os.Exit(1)
	}
}

// writeGreeting leaves a file for the server, which finds it in the volume that both mount.
func writeGreeting(name string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	text := fmt.Sprintf("Hello from pod %s, prepared by its init container", host)
	if err := os.WriteFile(name, []byte(text+"\n"), 0o644); err != nil {
		return err
	}
	slog.Info("wrote the greeting", "file", name)
	return nil
}

// site answers every path with what it knows of itself.
type site struct {
	greeting string
	host     string
	served   atomic.Int64
}

func serve(ctx context.Context, listen, greeting string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	s := &site{greeting: greeting, host: host}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: 5 * time.Second}
	stopped := make(chan error, 1)
	context.AfterFunc(ctx, func() {
		slog.Info("told to stop; finishing what is under way", "served", s.served.Load())
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		stopped <- server.Shutdown(limited)
	})
	slog.Info("serving", "address", listener.Addr().String(), "addresses", strings.Join(addresses(), " "))
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := s.served.Add(1)
	text, err := os.ReadFile(s.greeting)
	if errors.Is(err, os.ErrNotExist) {
		text = []byte("Hello\n")
	} else if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, "%shost:    %s\naddress: %s\npath:    %s\nrequest: %d\n",
		text, s.host, strings.Join(addresses(), " "), r.URL.Path, n)
	slog.Info("answered", "request", n, "path", r.URL.Path, "from", r.RemoteAddr)
}

// addresses of this pod: POD_IP when the manifest passes it on, else what the interfaces have.
func addresses() []string {
	if ip := os.Getenv("POD_IP"); ip != "" {
		return []string{ip}
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var list []string
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			list = append(list, n.IP.String())
		}
	}
	return list
}

// watch fetches a URL until it is told to stop. The server may not be there at first: containers of a pod start together.
func watch(ctx context.Context, url string, every time.Duration) error {
	for {
		begun := time.Now()
		text, err := fetch(ctx, url)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			slog.Warn("no answer", "url", url, "error", err)
		} else {
			first, _, _ := strings.Cut(text, "\n")
			slog.Info("answer", "url", url, "took", time.Since(begun).Round(time.Microsecond), "first_line", first)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

func fetchOnce(ctx context.Context, url string, retry time.Duration) error {
	deadline := time.Now().Add(retry)
	for {
		text, err := fetch(ctx, url)
		if err == nil {
			_, err = io.WriteString(os.Stdout, text)
			return err
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("%s: cannot get %s: %w", filepath.Base(os.Args[0]), url, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// A machine's proxy is for the world outside, and not for its own pods.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 1<<20))
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", answer.Status)
	}
	return string(body), err
}
