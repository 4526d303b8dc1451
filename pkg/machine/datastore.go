package machine

import (
	"slices"
	"strings"
)

// datastoreSchemes are how a datastore-endpoint may begin.
var datastoreSchemes = []string{"postgres", "postgresql", "mysql", "mariadb", "sqlite"}

// datastoreProblems never repeats an endpoint: it has a password in it.
func (s *Server) datastoreProblems(p *problems) {
	if scheme, _, ok := strings.Cut(s.DatastoreEndpoint, "://"); s.DatastoreEndpoint != "" && (!ok || !slices.Contains(datastoreSchemes, scheme)) {
		p.add("is not a database; write postgres://USER:PASSWORD@HOST:5432/DATABASE or mysql://USER:PASSWORD@tcp(HOST:3306)/DATABASE", "datastore-endpoint")
	}
	if (s.DatastoreCertFile == "") != (s.DatastoreKeyFile == "") {
		p.add("datastore-certfile and datastore-keyfile belong together; give both", "datastore-certfile")
	}
	for key, file := range map[string]string{"datastore-cafile": s.DatastoreCAFile, "datastore-certfile": s.DatastoreCertFile, "datastore-keyfile": s.DatastoreKeyFile} {
		if file != "" && !strings.HasPrefix(file, "/") {
			p.addf([]any{key}, "%q is not an absolute path", file)
		}
	}
}
