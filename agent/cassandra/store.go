package cassandra

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// stores turns the two sections into the pairs of files that CSM knows: one where both share everything, else one each.
func (r *reader) stores() {
	i := r.inst
	server, client := i.Internode.Active(), i.Client.Active() && i.NativeTransport
	switch {
	case server && client && shared(&i.Internode, &i.Client):
		r.store(StoreNode, &i.Internode, &i.Client)
	default:
		var a, b *Store
		if server {
			a = r.store(StoreInternode, &i.Internode)
		}
		if client {
			b = r.store(StoreClient, &i.Client)
		}
		if a != nil && b != nil {
			r.overlap(a, b)
		}
	}
	for _, s := range []*Section{&i.Internode, &i.Client} {
		if !s.Active() { // nobody loads these files; what is wrong with them is worth saying all the same
			for _, f := range s.blocks {
				f.Blocks = false
				if s.Present && f.Code != "no-password" {
					r.add(f)
				}
			}
		}
	}
}

func shared(a, b *Section) bool {
	return a.keystore == b.keystore && a.truststore == b.truststore && a.format == b.format && a.format != "" &&
		bytes.Equal(a.keystorePass, b.keystorePass) && bytes.Equal(a.truststorePw, b.truststorePw)
}

// overlap refuses pairs that share one file but not all: writing one would change the other unseen.
func (r *reader) overlap(a, b *Store) {
	if a.KeystorePath == "" || a.KeystorePath != b.KeystorePath && a.TruststorePath != b.TruststorePath {
		return
	}
	for _, s := range []*Store{a, b} {
		r.add(Finding{Code: "half-shared", Severity: Error, Blocks: true, Store: s.Name, Line: r.inst.Internode.Line,
			Message: "the two TLS sections share one file but not the other, or give it different types or passwords",
			Remedy:  "give both sections the same pair of files, or two pairs"})
	}
}

func (r *reader) store(name string, sections ...*Section) *Store {
	first := sections[0]
	s := &Store{Name: name, Format: first.format, KeystorePassword: first.keystorePass, TruststorePassword: first.truststorePw,
		ClientAuth: true, sections: sections}
	for _, sec := range sections {
		p := r.inst.CQLPort()
		if sec == &r.inst.Internode {
			p = r.inst.InternodePort()
		}
		s.Ports = append(s.Ports, p)
		s.ClientAuth = s.ClientAuth && sec.ClientAuth == "true"
		s.EndpointVerification = s.EndpointVerification || sec.EndpointVerification
	}
	r.inst.Stores = append(r.inst.Stores, s)
	for _, sec := range sections {
		for _, f := range sec.blocks {
			f.Store = name
			r.add(f)
		}
	}
	s.KeystorePath = r.file(s, "keystore", first.keystore, first.Line)
	s.TruststorePath = r.file(s, "truststore", first.truststore, first.Line)
	if s.KeystorePath != "" && s.KeystorePath == s.TruststorePath {
		r.block(s, "one-file", first.Line, "keystore and truststore are the same file", "give each a file of its own")
	}
	r.add(Finding{Code: "both-usages", Severity: Info, Store: name,
		Message: "this keystore serves incoming and outgoing connections, so its certificate needs serverAuth and clientAuth",
		Remedy:  "nothing to do with certificates of CSM; public CAs no longer issue clientAuth"})
	return s
}

func (r *reader) block(s *Store, code string, line int, message, remedy string) {
	r.add(Finding{Code: code, Severity: Error, Message: message, Remedy: remedy, Store: s.Name, Line: line, Blocks: true})
}

// file resolves one store file to the path that a rename would replace: symbolic links are followed once, and never out of
// the roots. It returns the path also where the file cannot be managed, so that it can be observed.
func (r *reader) file(s *Store, what, configured string, line int) string {
	if filepath.Base(configured) == ".keystore" || filepath.Base(configured) == ".truststore" {
		r.block(s, "default-location", line, what+" lies at Cassandra's default place, where its mere presence changes what the node accepts",
			"name a file in "+r.o.Roots[0]+" in cassandra.yaml at the next planned restart")
	}
	p := r.absolute(configured)
	if p == "" {
		r.block(s, "relative-path", line, fmt.Sprintf("%s is the relative path %s and Cassandra's working directory is not known", what, configured),
			"write an absolute path into cassandra.yaml, or start Cassandra once so that it can be seen")
		return ""
	}
	real, err := r.resolve(s, what, p, line)
	if err != nil {
		r.block(s, "store-folder-missing", line, fmt.Sprintf("the folder of %s cannot be used: %v", what, err),
			"make it: install -d -o cassandra -g cassandra -m 0750 "+filepath.Dir(p))
		return p
	}
	if !within(real, r.o.Roots) {
		r.block(s, "outside-roots", line, real+" lies outside of the folders that the agent may write: "+strings.Join(r.o.Roots, ", "),
			"add its folder to `store_roots` in agent.yaml, or name a file in "+r.o.Roots[0]+" in cassandra.yaml")
	}
	if mounted("/proc/self/mountinfo", real) {
		r.block(s, "bind-mount", line, real+" is mounted as a single file, which cannot be replaced by a rename",
			"mount its folder instead of the file")
	}
	if st, err := os.Stat(real); err == nil {
		if !st.Mode().IsRegular() {
			r.block(s, "not-a-file", line, real+" is not a regular file", "put a file there")
		}
		if what == "keystore" && runtime.GOOS != "windows" && st.Mode().Perm()&0o007 != 0 {
			r.add(Finding{Code: "keystore-readable", Severity: Error, Store: s.Name, Line: line,
				Message: fmt.Sprintf("every user of this host may read the private key in %s (mode %04o)", real, st.Mode().Perm()),
				Remedy:  "chmod 0600 " + real})
		}
	}
	return real
}

func (r *reader) resolve(s *Store, what, p string, line int) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(p))
	if err != nil {
		return "", err
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return "", fmt.Errorf("%s is not a folder", dir)
	}
	real := filepath.Join(dir, filepath.Base(p))
	st, err := os.Lstat(real)
	if err != nil || st.Mode()&fs.ModeSymlink == 0 {
		return real, nil
	}
	target, err := os.Readlink(real)
	if err != nil {
		return "", err
	}
	if kubernetes(target) || kubernetes(dir) {
		r.block(s, "kubernetes-volume", line, what+" is a link of a Kubernetes secret volume (..data), which only the kubelet replaces",
			"copy the secret into an emptyDir at start, or let the secret be written by its own controller")
		return real, nil
	}
	full, err := filepath.EvalSymlinks(real)
	if err != nil {
		r.block(s, "broken-link", line, real+" is a symbolic link that leads nowhere: "+err.Error(), "remove the link")
		return real, nil
	}
	return full, nil
}

func kubernetes(path string) bool {
	for _, e := range strings.Split(filepath.ToSlash(path), "/") {
		if strings.HasPrefix(e, "..") && e != ".." {
			return true
		}
	}
	return false
}

// mounted says whether path itself is a mount point (proc(5), mountinfo: field 5, octal escapes).
func mounted(mountinfo, path string) bool {
	data, err := os.ReadFile(mountinfo)
	if err != nil {
		return false
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for _, l := range strings.Split(string(data), "\n") {
		if f := strings.Fields(l); len(f) > 4 && unescape.Replace(f[4]) == path {
			return true
		}
	}
	return false
}
