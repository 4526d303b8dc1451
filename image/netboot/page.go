package netboot

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/skerry-os/skerry/pkg/size"
)

// page is the status page. Without script it is read again every five seconds; with it, rows come as they change.
var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Skerry network boot</title>
<noscript><meta http-equiv="refresh" content="5"></noscript>
<style>
body { font: 16px/1.5 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .4em 1em .4em 0; border-bottom: 1px solid #ccc }
progress { width: 10em }
.error { color: #a00 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #111 } .error { color: #f77 } }
</style>
</head>
<body>
<h1>Skerry network boot</h1>
<p>{{.Where}}</p>
<div id="machines" aria-live="polite">{{.Table}}</div>
<script nonce="{{.Nonce}}">
new EventSource("/events").onmessage = e => { document.getElementById("machines").innerHTML = JSON.parse(e.data) }
</script>
</body>
</html>
`))

var table = template.Must(template.New("table").Parse(`{{range .Warnings}}<p class="error">{{.}}</p>
{{end}}<table>
<thead><tr><th scope="col">Machine</th><th scope="col">Node</th><th scope="col">Stage</th><th scope="col">Progress</th><th scope="col">Last heard</th></tr></thead>
<tbody>
{{range .Rows}}<tr id="m-{{.ID}}"><td>{{.MAC}}<br>{{.What}}</td><td>{{.Node}}</td><td>{{.Stage}}{{if .Trouble}}<br><span class="error">{{.Trouble}}</span>{{end}}</td>` +
	`<td>{{if .Total}}<progress max="{{.Total}}" value="{{.Done}}">{{.Percent}}</progress> {{.Percent}}{{end}}</td><td>{{.Last}}</td></tr>
{{else}}<tr><td colspan="5">No machine has asked yet.</td></tr>
{{end}}</tbody>
</table>
`))

type row struct {
	*Machine
	ID, What, Percent, Last, Trouble string
}

func rowOf(m *Machine) row {
	r := row{Machine: m, ID: strings.ReplaceAll(m.MAC, ":", "-"), Last: m.Last.Local().Format(time.TimeOnly), Trouble: m.Trouble(time.Now())}
	var what []string
	for _, p := range []string{m.Model, m.Serial, m.Arch, m.Firmware, m.Address} {
		if p != "" {
			what = append(what, p)
		}
	}
	r.What = strings.Join(what, ", ")
	if m.Total > 0 {
		r.Percent = fmt.Sprintf("%d %% of %s", 100*m.Done/m.Total, size.Bytes(m.Total).Rounded())
	}
	return r
}

// tableHTML is what changes on the page.
func (s *Server) tableHTML() ([]byte, error) {
	var v struct {
		Warnings []string
		Rows     []row
	}
	v.Warnings = s.warnings()
	list, err := s.List()
	if err != nil {
		v.Warnings = append(v.Warnings, err.Error())
	}
	for _, m := range list {
		v.Rows = append(v.Rows, rowOf(m))
	}
	var b bytes.Buffer
	if err := table.Execute(&b, v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// pageTick is how long a change by another process stays unseen at most.
const pageTick = 2 * time.Second

// events sends the table whenever it changed, as server-sent events.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	control := http.NewResponseController(w)
	tick := time.NewTicker(pageTick)
	defer tick.Stop()
	var last []byte
	for {
		changed := s.watch()
		html, err := s.tableHTML()
		if err != nil {
			return
		}
		if !bytes.Equal(html, last) {
			data, err := json.Marshal(string(html))
			if err != nil {
				return
			}
			if _, err := fmt.Fprintf(w, "data: %s\n\n", data); err != nil || control.Flush() != nil {
				return
			}
			last = html
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

// pageHandler shows the page, and only to this host: a name that somebody else made lead to it is refused.
func (s *Server) pageHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		html, err := s.tableHTML()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		nonce := newID()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'; script-src 'nonce-"+nonce+"'")
		w.Header().Set("Cache-Control", "no-store")
		_ = page.Execute(w, struct {
			Where, Nonce string
			Table        template.HTML
		}{s.where(), nonce, template.HTML(html)}) // made by a template above, which escapes
	})
	mux.HandleFunc("GET /events", s.events)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if ip := net.ParseIP(strings.Trim(host, "[]")); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "this page is for http://localhost", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (s *Server) where() string {
	var list []string
	for _, k := range s.kernels {
		list = append(list, k.Board+" "+k.Release.Manifest().Version)
	}
	return fmt.Sprintf("%s, %v: %s", s.Interface, s.self, strings.Join(list, ", "))
}
