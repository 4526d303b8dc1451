// Package databases runs real databases for tests: Debian's PostgreSQL and MariaDB, each in a folder of its own, as nobody where
// the test is root, gone with the test. Where the program is not installed the test is skipped, or fails under SKERRY_TOOLS.
package databases

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Database is one. It does not run before Start.
type Database struct {
	URL string // for --datastore-endpoint; the password has characters that URLs escape

	t       testing.TB
	dir     string
	place   Place
	args    []string
	cmd     *exec.Cmd
	killing syscall.Signal // ends it as a crash would
}

// Place is where a database listens: the zero value is a free port of this host's loopback.
type Place struct {
	Address string                                      // IP address
	Command func(name string, args ...string) *exec.Cmd // runs a program where Address is
}

// Kinds are the constructors by the names of pkg/datastore's kinds.
var Kinds = map[string]func(testing.TB, Place) *Database{"postgresql": PostgreSQL, "mysql": MariaDB}

// PostgreSQL makes one with an empty cluster database to come.
func PostgreSQL(t testing.TB, at Place) *Database {
	t.Helper()
	initdb := found(t, "/usr/lib/postgresql/*/bin/initdb")
	d := at.database(t, "pg")
	d.killing = syscall.SIGQUIT // takes its children along, without a checkpoint
	secret := d.file("secret", "p@ss/word\n")
	data := filepath.Join(d.dir, "data")
	d.must(initdb, "-D", data, "-U", "skerry", "--auth=scram-sha-256", "--pwfile", secret, "-N")
	if d.place.Address != "127.0.0.1" {
		d.must("sh", "-c", "echo 'host all all all scram-sha-256' >>"+data+"/pg_hba.conf")
	}
	port := d.port("5432")
	d.args = []string{filepath.Join(filepath.Dir(initdb), "postgres"), "-D", data, "-c", "listen_addresses=" + d.place.Address, "-p", port, "-k", d.dir}
	d.URL = "postgres://skerry:p%40ss%2Fword@" + net.JoinHostPort(d.place.Address, port) + "/cluster"
	return d
}

// MariaDB makes one with no database but its own.
func MariaDB(t testing.TB, at Place) *Database {
	t.Helper()
	mariadbd := found(t, "/usr/sbin/mariadbd")
	d := at.database(t, "maria")
	d.killing = syscall.SIGKILL
	first := d.file("init.sql", "CREATE USER IF NOT EXISTS 'skerry'@'%' IDENTIFIED BY 'p@ss/word';\nGRANT ALL ON *.* TO 'skerry'@'%';\n")
	data := filepath.Join(d.dir, "data")
	d.must("mkdir", data)
	// What mariadb-install-db would do, which is in another package: the privilege tables, from its own scripts.
	d.must("sh", "-c", "{ echo 'create database mysql;'; echo 'use mysql;'; cat /usr/share/mysql/mysql_system_tables.sql /usr/share/mysql/mysql_system_tables_data.sql; } | "+
		mariadbd+" --no-defaults --bootstrap --datadir="+data+" --skip-networking")
	port := d.port("3306")
	d.args = []string{mariadbd, "--no-defaults", "--datadir=" + data, "--bind-address=" + d.place.Address, "--port=" + port, "--socket=" + filepath.Join(d.dir, "s"),
		"--skip-name-resolve", "--pid-file=" + filepath.Join(d.dir, "pid"), "--init-file=" + first}
	d.URL = "mysql://skerry:p@ss/word@tcp(" + net.JoinHostPort(d.place.Address, port) + ")/cluster"
	return d
}

// Start starts it and does not wait until it answers.
func (d *Database) Start() {
	d.t.Helper()
	d.cmd = d.nobody(d.args...)
	log, err := os.OpenFile(d.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close() //nolint:errcheck // the program has its own
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
}

// Kill ends it as a crash would. It can be started again.
func (d *Database) Kill() {
	if d.cmd != nil {
		_ = d.cmd.Process.Signal(d.killing)
		_ = d.cmd.Wait()
		d.cmd = nil
	}
}

func (p Place) database(t testing.TB, prefix string) *Database {
	t.Helper()
	if p.Address == "" {
		p = Place{Address: "127.0.0.1", Command: exec.Command}
	}
	// Not t.TempDir: others must be able to pass through to it.
	dir, err := os.MkdirTemp("", "skerry-"+prefix+"-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Database{t: t, dir: dir, place: p}
	t.Cleanup(func() {
		d.Kill()
		_ = os.RemoveAll(dir)
		_ = os.Remove(dir + ".log")
	})
	return d
}

// nobody runs programs that refuse to be root; they end with the test's process.
func (d *Database) nobody(args ...string) *exec.Cmd {
	d.t.Helper()
	if os.Geteuid() == 0 {
		u, err := user.Lookup("nobody")
		if err != nil {
			d.t.Fatal(err)
		}
		if out, err := exec.Command("chown", u.Uid+":"+u.Gid, d.dir).CombinedOutput(); err != nil {
			d.t.Fatalf("%v: %s", err, out)
		}
		args = append([]string{"setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--pdeathsig", "KILL", "--"}, args...)
	}
	cmd := d.place.Command(args[0], args[1:]...)
	cmd.Dir = d.dir
	return cmd
}

func (d *Database) must(args ...string) {
	d.t.Helper()
	if out, err := d.nobody(args...).CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (d *Database) file(name, text string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil { // it is nobody who reads it
		d.t.Fatal(err)
	}
	return path
}

// port is a free one of this host, or the usual one elsewhere.
func (d *Database) port(usual string) string {
	d.t.Helper()
	if d.place.Address != "127.0.0.1" {
		return usual
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // nobody called
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}

// found looks for a program where Debian puts it.
func found(t testing.TB, pattern string) string {
	t.Helper()
	list, _ := filepath.Glob(pattern)
	if len(list) == 0 {
		if os.Getenv("SKERRY_TOOLS") != "" {
			t.Fatalf("%s is not installed; run make setup", pattern)
		}
		t.Skipf("%s is not installed; run make setup", pattern)
	}
	return list[len(list)-1]
}
