package cri

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/evenkeel/evenkeel/image"
)

// Metrics is what the engine tells about itself, in Prometheus' format. Calls are counted as they end; everything else
// is looked up when somebody asks. A nil one counts nothing.
type Metrics struct {
	registry   *prometheus.Registry
	operations *prometheus.CounterVec
	durations  *prometheus.HistogramVec
	steps      *prometheus.HistogramVec
}

// NewMetrics makes metrics without a server; Server.Metrics takes them.
func NewMetrics() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		operations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "evenkeel_operations_total", Help: "Calls answered, by method and gRPC code.",
		}, []string{"method", "code"}),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "evenkeel_operation_duration_seconds", Help: "How long calls took, by method.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120},
		}, []string{"method"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "evenkeel_step_duration_seconds", Help: "How long the steps of calls took, by step.",
			Buckets: []float64{.0001, .001, .005, .01, .025, .05, .1, .5, 1, 10, 60},
		}, []string{"step"}),
	}
	m.registry.MustRegister(m.operations, m.durations, m.steps, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Handler answers GET requests with all metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Timeout: 10 * time.Second, MaxRequestsInFlight: 2})
}

// observe counts one call that has ended, and its steps.
func (m *Metrics) observe(e entry) {
	if m == nil {
		return
	}
	m.operations.WithLabelValues(e.method, status.Code(e.err).String()).Inc()
	m.durations.WithLabelValues(e.method).Observe(e.took.Seconds())
	for _, step := range e.trace.Steps() {
		m.steps.WithLabelValues(step.Name).Observe(step.Took.Seconds())
	}
}

// Watch adds what s knows of its pods and images, until ctx ends. It is called once.
func (m *Metrics) Watch(ctx context.Context, s *Server) { m.registry.MustRegister(&inventory{ctx, s}) }

// inventory describes what the engine has, as Prometheus asks for it; whose interface knows no context.
type inventory struct {
	ctx context.Context
	s   *Server
}

// shimsLimit is how long shims may take to tell how much they logged.
const shimsLimit = time.Second

var (
	podsDesc = prometheus.NewDesc("evenkeel_pods", "Pods, by state.", []string{"state"}, nil)
	// One shim runs for each READY pod, so that READY pods and shims are compared to find one that is missing.
	shimsDesc      = prometheus.NewDesc("evenkeel_shims", "Shims that answer.", nil, nil)
	containersDesc = prometheus.NewDesc("evenkeel_containers", "Containers, by state.", []string{"state"}, nil)
	leftoversDesc  = prometheus.NewDesc("evenkeel_leftovers_total", "Live things without a record that were found and removed since the start.", nil, nil)
	logsDesc       = prometheus.NewDesc("evenkeel_log_bytes", "Bytes written to the logs of containers in READY pods.", nil, nil)
	lostDesc       = prometheus.NewDesc("evenkeel_log_lost_bytes", "Bytes of output of those containers that did not get into a log.", nil, nil)
	readersDesc    = prometheus.NewDesc("evenkeel_event_readers_dropped_total", "Readers of container events that did not keep up.", nil, nil)
)

// imageRows are what the image store counts.
var imageRows = []imageMetric{
	imageRow("pulls_total", "Pulls that ended, well or not.", prometheus.CounterValue, func(m image.Metrics) float64 { return float64(m.Pulls) }),
	imageRow("pulls_running", "Pulls under way.", prometheus.GaugeValue, func(m image.Metrics) float64 { return float64(m.PullsRunning) }),
	imageRow("pull_seconds_total", "Time that pulls took which ended well.", prometheus.CounterValue, func(m image.Metrics) float64 { return m.PullSeconds }),
	imageRow("pull_failures_total", "Pulls that failed.", prometheus.CounterValue, func(m image.Metrics) float64 { return float64(m.Failures) }),
	imageRow("layers_fetched_total", "Layers fetched.", prometheus.CounterValue, func(m image.Metrics) float64 { return float64(m.LayersFetched) }),
	imageRow("layers_reused_total", "Layers that pulls found already there.", prometheus.CounterValue, func(m image.Metrics) float64 { return float64(m.LayersReused) }),
	imageRow("layers_damaged_total", "Layers found damaged on disk.", prometheus.CounterValue, func(m image.Metrics) float64 { return float64(m.LayersDamaged) }),
	imageRow("downloaded_bytes_total", "Bytes downloaded from registries.", prometheus.CounterValue, func(m image.Metrics) float64 { return float64(m.BytesDownloaded) }),
	imageRow("resumptions_total", "Downloads resumed after a connection broke.", prometheus.CounterValue, func(m image.Metrics) float64 { return float64(m.Resumptions) }),
	imageRow("images", "Images in the store.", prometheus.GaugeValue, func(m image.Metrics) float64 { return float64(m.Images) }),
	imageRow("broken_images", "Images that lack a layer.", prometheus.GaugeValue, func(m image.Metrics) float64 { return float64(m.Broken) }),
	imageRow("store_bytes", "Size of the image store.", prometheus.GaugeValue, func(m image.Metrics) float64 { return float64(m.Bytes) }),
}

type imageMetric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(image.Metrics) float64
}

func imageRow(name, help string, kind prometheus.ValueType, value func(image.Metrics) float64) imageMetric {
	return imageMetric{prometheus.NewDesc("evenkeel_image_"+name, help, nil, nil), kind, value}
}

func (i *inventory) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{podsDesc, shimsDesc, containersDesc, leftoversDesc, readersDesc, logsDesc, lostDesc} {
		c <- d
	}
	for _, row := range imageRows {
		c <- row.desc
	}
}

// Collect shows a state that nobody is in as 0, since a missing series cannot be compared with anything.
func (i *inventory) Collect(c chan<- prometheus.Metric) {
	pods, containers := map[string]int{}, map[string]int{}
	for _, pod := range i.s.Pods.List(nil) {
		pods[pod.State.String()]++
	}
	for _, container := range i.s.Containers.List(nil) {
		containers[container.State.String()]++
	}
	for _, name := range cri.PodSandboxState_name {
		c <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(pods[name]), name)
	}
	for _, name := range cri.ContainerState_name {
		c <- prometheus.MustNewConstMetric(containersDesc, prometheus.GaugeValue, float64(containers[name]), name)
	}
	c <- prometheus.MustNewConstMetric(shimsDesc, prometheus.GaugeValue, float64(i.s.Pods.Shims()))
	c <- prometheus.MustNewConstMetric(leftoversDesc, prometheus.CounterValue, float64(i.s.Pods.Leftovers()))
	c <- prometheus.MustNewConstMetric(readersDesc, prometheus.CounterValue, float64(i.s.Pods.DroppedReaders()))
	ctx, end := context.WithTimeout(i.ctx, shimsLimit)
	defer end()
	written, lost := i.s.Pods.LogTotals(ctx)
	c <- prometheus.MustNewConstMetric(logsDesc, prometheus.GaugeValue, float64(written))
	c <- prometheus.MustNewConstMetric(lostDesc, prometheus.GaugeValue, float64(lost))
	images := i.s.Images.Metrics()
	for _, row := range imageRows {
		c <- prometheus.MustNewConstMetric(row.desc, row.kind, row.value(images))
	}
}
