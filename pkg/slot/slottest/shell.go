package slottest

import (
	"regexp"
	"strings"
)

// shell is what the boot loaders' shells have in common: U-Boot's hush, GRUB's.
type shell struct {
	d      Disk
	vars   map[string]string
	loads  func([]byte) bool
	do     func(words []string) bool // a command
	booted Boot
	reset  bool
}

func (h *shell) over() bool { return h.reset || h.booted.Slot != "" }

// run runs lines, and gives whether the last command went well.
func (h *shell) run(lines []string) (ok bool) {
	for i := 0; i < len(lines) && !h.over(); i++ {
		line := strings.TrimSpace(lines[i])
		switch word, rest, _ := strings.Cut(line, " "); word {
		case "", "#":
		case "if":
			end := i + closing(lines[i:], "if ", "fi")
			h.branch(lines[i:end])
			i = end
		case "for":
			end := i + closing(lines[i:], "for ", "done")
			name, list, _ := strings.Cut(strings.TrimSuffix(rest, "; do"), " in ")
			for item := range strings.FieldsSeq(list) {
				h.vars[name] = item
				h.run(lines[i+1 : end])
			}
			i = end
		default:
			ok = h.command(line)
		}
	}
	return ok
}

// closing gives the index of the line that closes the block which the first line opens.
func closing(lines []string, opens, closes string) int {
	depth := 0
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, opens) {
			depth++
		}
		if line == closes {
			if depth--; depth == 0 {
				return i
			}
		}
	}
	panic("the boot script has no " + closes + " for: " + lines[0])
}

// branch runs an if with its elifs and else.
func (h *shell) branch(lines []string) {
	depth, taken, start := 0, false, -1
	finish := func(end int) {
		if start >= 0 {
			h.run(lines[start:end])
		}
		start = -1
	}
	for i, line := range lines {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "if ") {
			depth++
		}
		if depth == 1 {
			condition, is := strings.CutPrefix(strings.TrimPrefix(line, "el"), "if ")
			if is || line == "else" {
				finish(i)
				if !taken && (line == "else" || h.command(strings.TrimSuffix(condition, "; then"))) {
					taken, start = true, i+1
				}
			}
		}
		if line == "fi" {
			depth--
		}
	}
	finish(len(lines))
}

var reference = regexp.MustCompile(`\$\{([a-z_]+)\}`)

// words splits a command as the shell does: what is between quotes is one word, whatever is in it.
func (h *shell) words(line string) (out []string) {
	for i, part := range strings.Split(line, `"`) {
		text := reference.ReplaceAllStringFunc(part, func(r string) string { return h.vars[r[2:len(r)-1]] })
		if i%2 == 1 {
			out = append(out, text)
		} else {
			out = append(out, strings.Fields(text)...)
		}
	}
	return out
}

func (h *shell) command(line string) bool {
	w := h.words(line)
	switch w[0] {
	case "echo", "sleep":
		return true
	case "test":
		if w[1] == "-n" {
			return w[2] != ""
		}
		return w[2] == "=" && w[1] == w[3]
	case "reset", "reboot":
		h.reset = true
		return false
	}
	return h.do(w)
}
