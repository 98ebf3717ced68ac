package agent_test

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/porchlight-iot/porchlight/agent"
	"github.com/porchlight-iot/porchlight/agent/config"
	"github.com/porchlight-iot/porchlight/bridge/xmppserver"
)

// TestMetrics has a device report between real parts, and reads what
// Prometheus would with Prometheus's own parser.
func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	server, err := xmppserver.Start(t.Context(), xmppserver.Prosody, xmppserver.Options{
		Dir: filepath.Join(dir, "xmpp"), Component: "porch.localhost", Secret: "a secret of the test", Storage: "memory",
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	broker, metrics := freeTCP(t), freeTCP(t)
	write(t, filepath.Join(dir, "secret"), "a secret of the test")
	path := filepath.Join(dir, "porchlight.yaml")
	write(t, path, fmt.Sprintf(`
gateway: {id: porch, data_dir: %s}
xmpp:
  component: {domain: porch.localhost, server: %q, secret_file: secret}
  pubsub: %s
operators:
  - {jid: anna@localhost, role: owner}
mqtt: {listen: %q}
metrics: {listen: %q}
devices:
  - {id: kitchen, profile: tasmota, mqtt: {topic: kitchen}}
`, filepath.Join(dir, "data"), server.ComponentAddr(), server.PubSub(), broker, metrics))
	a, _ := startGateway(t, path, 2)
	select {
	case <-a.Ready():
	case <-time.After(patience):
		t.Fatal("the gateway is not ready")
	}
	for i := range 3 {
		command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(broker), "-q", "1", "-t", "tele/kitchen/SENSOR", "-m", fmt.Sprintf(`{"COUNTER":{"C1":%d}}`, i))
	}
	command(t, "mosquitto_pub", "-h", "127.0.0.1", "-p", port(broker), "-q", "1", "-t", "tele/kitchen/SENSOR", "-m", `{"COUNTER":`)

	c, _ := config.Load(path, config.LoadOptions{})
	if err := agent.AskDevices(c, "command", agent.DeviceArgs{Which: "nobody", Name: "on"}, io.Discard); err != nil {
		t.Log("as it should be:", err)
	}

	var got map[string]*dto.MetricFamily
	value := func(name string, labels ...string) float64 {
		for _, m := range got[name].GetMetric() {
			fits := 0
			for _, l := range m.GetLabel() {
				for i := 0; i < len(labels); i += 2 {
					if l.GetName() == labels[i] && l.GetValue() == labels[i+1] {
						fits++
					}
				}
			}
			if 2*fits == len(labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
		return -1
	}
	deadline := time.Now().Add(patience)
	for {
		got = scrape(t, "http://"+metrics+"/metrics")
		if value("porchlight_device_readings_delivered_total", "device", "kitchen") == 3 && value("porchlight_inputs_rejected_total", "transport", "mqtt") == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("of kitchen's three readings %v were delivered, and %v inputs were rejected",
				value("porchlight_device_readings_delivered_total", "device", "kitchen"), value("porchlight_inputs_rejected_total", "transport", "mqtt"))
		}
		time.Sleep(50 * time.Millisecond)
	}
	for _, c := range []struct {
		name   string
		labels []string
		want   float64
	}{
		{"porchlight_readings_received_total", []string{"transport", "mqtt"}, 3},
		{"porchlight_device_readings_received_total", []string{"device", "kitchen"}, 3},
		{"porchlight_xmpp_online", nil, 1},
		{"porchlight_xmpp_sessions_total", nil, 1},
		{"porchlight_readings_lost_total", []string{"reason", "full"}, 0},
		{"porchlight_commands_total", []string{"outcome", "refused"}, 1},
		{"porchlight_commands_total", []string{"outcome", "sent"}, 0},
		{"porchlight_driver_links_total", []string{"driver", "mqtt broker"}, 1},
		{"porchlight_store_failed", nil, 0},
		{"porchlight_devices", []string{"state", "fresh"}, 2},
	} {
		if v := value(c.name, c.labels...); v != c.want {
			t.Errorf("%s%v is %v, want %v", c.name, c.labels, v, c.want)
		}
	}
	for _, name := range []string{"porchlight_written_bytes_total", "porchlight_queue_age_seconds", "go_goroutines", "process_resident_memory_bytes"} {
		if got[name] == nil {
			t.Errorf("there is no %s", name)
		}
	}

	status, body := fetch(t, "http://"+metrics+"/healthz")
	if status != http.StatusOK || body != "ok\n" {
		t.Errorf("/healthz: %d %q", status, body)
	}

	// What the dashboard shows must be there.
	dashboard, err := os.ReadFile("../configs/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`\b(porchlight|process|go)_[a-z_]+`).FindAllString(string(dashboard), -1) {
		if got[name] == nil {
			t.Errorf("the dashboard shows %s, which is not there", name)
		}
	}
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

func scrape(t *testing.T, url string) map[string]*dto.MetricFamily {
	t.Helper()
	status, body := fetch(t, url)
	if status != http.StatusOK {
		t.Fatalf("%s: %d", url, status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%s: %v\n%s", url, err, body)
	}
	return families
}
