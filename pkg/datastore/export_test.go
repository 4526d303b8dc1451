package datastore

import "testing"

// RunningPostgres starts a PostgreSQL that ends with the test, and gives its URL.
func RunningPostgres(t testing.TB) string {
	d := postgres(t)
	d.start()
	return d.url
}
