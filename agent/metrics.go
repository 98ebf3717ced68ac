package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/porchlight-iot/porchlight/agent/outbox"
	"github.com/porchlight-iot/porchlight/bridge"
	"github.com/porchlight-iot/porchlight/devices"
)

const (
	// maxMeasured is how many devices have numbers of their own; further ones
	// are counted together, so that a flood of devices is none of series.
	maxMeasured = 200
	otherDevice = "other"

	scrapeTime = 10 * time.Second
)

// meters count what Prometheus is told. Counters begin at zero with each start
// of the process, as its data model has it.
type meters struct {
	received, rejected              *prometheus.CounterVec // by transport
	deviceReceived, deviceDelivered *prometheus.CounterVec // by device
	lost                            *prometheus.CounterVec // by reason
	commands                        *prometheus.CounterVec // by outcome
	driverUps                       *prometheus.CounterVec // by driver
	sessions                        prometheus.Counter

	mu       sync.Mutex
	measured map[devices.ID]bool
}

func newMeters() *meters {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "porchlight", Name: name, Help: help}, []string{label})
	}
	m := &meters{
		received:        vec("readings_received_total", "Readings taken from devices.", "transport"),
		rejected:        vec("inputs_rejected_total", "Inputs that could not be used: decode faults, strangers' and malformed ones.", "transport"),
		deviceReceived:  vec("device_readings_received_total", "Readings taken from a device; those of devices beyond the first 200 are counted as other.", "device"),
		deviceDelivered: vec("device_readings_delivered_total", "Readings of a device that the server accepted.", "device"),
		lost:            vec("readings_lost_total", "Readings that will not reach the server: full, thinned, damaged, refused.", "reason"),
		commands:        vec("commands_total", "Commands by their outcome: refused, sent (and not confirmed), confirmed.", "outcome"),
		driverUps:       vec("driver_links_total", "How often a driver's link came up; more than once is a reconnect.", "driver"),
		sessions: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "porchlight", Name: "xmpp_sessions_total", Help: "XMPP sessions; more than one is a reconnect.",
		}),
		measured: make(map[devices.ID]bool),
	}
	// What never happened is 0 and not absent: an alert can then be on its rise.
	for _, reason := range []string{lostFull, lostThinned, lostDamaged, lostRefused} {
		m.lost.WithLabelValues(reason)
	}
	for _, outcome := range []bridge.OutcomeKind{bridge.Refused, bridge.Sent, bridge.Confirmed} {
		m.commands.WithLabelValues(outcome.String())
	}
	return m
}

// device is the label of a device.
func (m *meters) device(id devices.ID) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.measured[id] {
		if len(m.measured) >= maxMeasured {
			return otherDevice
		}
		m.measured[id] = true
	}
	return string(id)
}

func (m *meters) delivered(id devices.ID, readings int) {
	m.deviceDelivered.WithLabelValues(m.device(id)).Add(float64(readings))
}

// The reasons of losses.
const (
	lostFull    = "full"
	lostThinned = "thinned"
	lostDamaged = "damaged"
	lostRefused = "refused"
)

func (m *meters) loss(l outbox.Loss) {
	reason := lostRefused // whose text is the server's
	switch {
	case l.Kept != nil:
		reason = lostThinned
	case l.Reason == outbox.ReasonFull:
		reason = lostFull
	case l.Reason == outbox.ReasonDamaged:
		reason = lostDamaged
	}
	m.lost.WithLabelValues(reason).Add(float64(l.Count))
}

// command counts a command by the audit of it, which begins with its outcome.
func (m *meters) command(e bridge.Event) {
	for _, outcome := range []bridge.OutcomeKind{bridge.Refused, bridge.Sent, bridge.Confirmed} {
		if strings.HasPrefix(e.Summary, outcome.String()) {
			m.commands.WithLabelValues(outcome.String()).Inc()
		}
	}
}

// A measured sink counts what one driver hands in.
type measuredSink struct {
	devices.Sink
	meters    *meters
	transport string // the first word of the driver's name
}

func (m *meters) sink(d devices.Driver, s devices.Sink) devices.Sink {
	transport, _, _ := strings.Cut(d.Name(), " ")
	return &measuredSink{s, m, transport}
}

// Report implements [devices.Sink].
func (s *measuredSink) Report(ctx context.Context, m devices.Message) (devices.Receipt, error) {
	r, err := s.Sink.Report(ctx, m)
	if err == nil {
		s.meters.received.WithLabelValues(s.transport).Add(float64(len(m.Readings)))
		for _, reading := range m.Readings {
			s.meters.deviceReceived.WithLabelValues(s.meters.device(reading.Device)).Inc()
		}
	}
	return r, err
}

// Reject implements [devices.Sink].
func (s *measuredSink) Reject(source string, why error) {
	s.meters.rejected.WithLabelValues(s.transport).Inc()
	s.Sink.Reject(source, why)
}

// Up implements [devices.Sink].
func (s *measuredSink) Up(driver string) {
	s.meters.driverUps.WithLabelValues(driver).Inc()
	s.Sink.Up(driver)
}

// A snapshot is collected when Prometheus asks.
type snapshot struct{ agent *Agent }

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("porchlight_"+name, help, labels, nil)
}

// Describe implements [prometheus.Collector]: what comes depends on the state.
func (snapshot) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (s snapshot) Collect(out chan<- prometheus.Metric) {
	gauge := func(name, help string, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(describe(name, help, everySecond(labels, 0)...), prometheus.GaugeValue, v, everySecond(labels, 1)...)
	}
	counter := func(name, help string, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(describe(name, help, everySecond(labels, 0)...), prometheus.CounterValue, v, everySecond(labels, 1)...)
	}
	a := s.agent
	st := a.Stats()
	counter("readings_delivered_total", "Readings that the server accepted.", float64(st.Outbox.Settled))
	counter("messages_repeated_total", "Messages that came again and were recognised.", float64(st.Outbox.Repeated))
	gauge("readings_waiting", "Readings that the server has not accepted.", float64(st.Outbox.Memory), "where", "memory")
	gauge("readings_waiting", "Readings that the server has not accepted.", float64(st.Outbox.Disk), "where", "disk")
	if oldest, err := a.outbox.Oldest(); err == nil {
		age := 0.0
		if !oldest.IsZero() {
			age = max(0, time.Since(oldest).Seconds())
		}
		gauge("queue_age_seconds", "Age of the oldest reading that waits; 0 where none does.", age)
	}
	gauge("xmpp_online", "1 while there is an XMPP session.", truth(st.Online))
	counter("written_bytes_total", "Bytes that this process had written to disks: what wears the card.", float64(writtenBytes()))
	counter("store_commits_total", "Commits of the store.", float64(st.Outbox.Commits), "to", "store")
	counter("store_commits_total", "Commits of the store.", float64(st.Outbox.Batches), "to", "journal")
	gauge("store_used_bytes", "Bytes of the store that are in use.", float64(st.Outbox.UsedBytes))
	gauge("store_failed", "1 where the store cannot be written any more.", truth(st.Outbox.Fault != ""))
	for state, n := range a.house.states() {
		gauge("devices", "Devices by their state.", float64(n), "state", state.String())
	}
	gauge("clock_synchronised", "1 while something keeps this machine's clock.", truth(clockSynchronised()))
}

// everySecond gives the labels' names or values of name, value, name, value.
func everySecond(pairs []string, from int) (some []string) {
	for i := from; i < len(pairs); i += 2 {
		some = append(some, pairs[i])
	}
	return some
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// metricsHandler answers /metrics for Prometheus and /healthz for whoever
// watches over processes.
func (a *Agent) metricsHandler() http.Handler {
	r := prometheus.NewRegistry()
	m := a.meters
	r.MustRegister(snapshot{a}, m.received, m.rejected, m.deviceReceived, m.deviceDelivered, m.lost, m.commands, m.driverUps, m.sessions,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: scrapeTime}))
	mux.HandleFunc("GET /healthz", a.healthz)
	return mux
}

// healthz says ok, or what is wrong, with status 503. That the server is away is
// nothing that a new start would mend.
func (a *Agent) healthz(w http.ResponseWriter, _ *http.Request) {
	var faults []string
	select {
	case <-a.Ready():
	default:
		faults = append(faults, "no driver is up yet")
	}
	for _, part := range a.Stuck() {
		faults = append(faults, part+" does not get on")
	}
	if fault := a.Stats().Outbox.Fault; fault != "" {
		faults = append(faults, "the store cannot be written: "+fault)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if len(faults) > 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, strings.Join(faults, "\n"))
		return
	}
	fmt.Fprintln(w, "ok")
}

// serveMetrics listens until ctx ends, again and again: the gateway does without.
func (a *Agent) serveMetrics(ctx context.Context, address string) {
	var p pause
	for ctx.Err() == nil {
		err := a.listenMetrics(ctx, address)
		if err == nil {
			return
		}
		wait := p.next(false, err)
		a.log.Error("nobody can fetch metrics", "error", err, "again", wait.Round(time.Second).String())
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func (a *Agent) listenMetrics(ctx context.Context, address string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("cannot listen on metrics.listen: %w", err)
	}
	a.log.Info("metrics: listening", "address", l.Addr())
	server := &http.Server{
		Handler: a.metricsHandler(), ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelDebug), MaxHeaderBytes: 8 << 10,
		ReadTimeout: scrapeTime, WriteTimeout: 2 * scrapeTime, IdleTimeout: time.Minute,
	}
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("cannot answer on metrics.listen: %w", err)
	}
	return nil
}
