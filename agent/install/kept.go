package install

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/cassandra-security-manager/csm/protocol/agent/v1"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/keystore"
)

// ReturnBefore is how long before its end a kept leaf is not put back any more; one that lives shortly by design has a third of
// its life.
const ReturnBefore = 7 * 24 * time.Hour

// original describes the keystore of another CA that ours took the place of: one for each store, until nobody wants it back.
type original struct {
	Format int `json:"format"`
	// Dir holds the keystore as the store held it, beside this file.
	Dir       string    `json:"dir"`
	Keystore  string    `json:"keystore"` // hex SHA-256 of the file
	Leaf      string    `json:"leaf"`     // hex SHA-256 of the certificate
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Since     time.Time `json:"since"`
}

// until is when it is not put back any more.
func (o *original) until() time.Time {
	return o.NotAfter.Add(-min(ReturnBefore, o.NotAfter.Sub(o.NotBefore)/3))
}

func (f folder) original() (*original, error) {
	return load(f.path("original.json"), func(o *original) int { return o.Format })
}

// originalData reads the kept keystore; an error when it is gone or is not what was kept.
func (f folder) originalData(o *original) ([]byte, error) {
	path := f.path(filepath.Join(filepath.Base(o.Dir), "keystore"))
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Refused, "kept-missing", "%s is gone", path).Do("this node keeps the certificate of ours: name it with --except when the rotation is turned round")
	}
	x, err := read(path)
	switch {
	case err != nil:
		return nil, fault.Wrap(err, fault.Refused, "kept-unreadable", "%s", path).Do("let the agent's user read its state folder")
	case x.sum != o.Keystore:
		return nil, fault.New(fault.Refused, "kept-changed", "%s is not what was kept", path).Do("put the kept file back from a backup of the state folder, or let this node keep the certificate of ours")
	}
	return x.data, nil
}

// takesOver says whether the leaf in place is another CA's and one of ours takes its place.
func (t *transaction) takesOver() bool {
	return t.plan.Key != nil && !t.plan.Given && t.old.key != nil && t.old.key.Leaf() != nil && (t.rec == nil || t.rec.Theirs || len(t.rec.History) == 0)
}

// keepOriginal writes the keystore of another CA into the state folder, on the disk, before the first rename: CSM cannot make it
// again. One that was kept earlier and is another goes afterwards, so that there is one at most.
func (t *transaction) keepOriginal() error {
	if !t.takesOver() {
		return nil
	}
	l := t.old.key.Leaf()
	o := &original{Format: format, Dir: "original-" + t.old.keystore.sum[:24], Keystore: t.old.keystore.sum, Leaf: anchorID(l), NotBefore: l.NotBefore, NotAfter: l.NotAfter, Since: t.i.o.Clock.Now()}
	if have, err := t.f.original(); err == nil && have != nil && have.Keystore == o.Keystore {
		if _, err := t.f.originalData(have); err == nil {
			return nil
		}
	}
	if len(t.old.keystore.data) > keystore.MaxSize {
		return fault.New(fault.Refused, "kept-too-large", "the keystore in place is larger than %d bytes, so it cannot be kept for the way back", keystore.MaxSize).Do("take out of it what Cassandra does not need")
	}
	err := t.f.d.replace(t.f.path(filepath.Join(o.Dir, "keystore")), t.old.keystore.data)
	if err == nil {
		err = t.f.d.syncFolder(t.f.dir)
	}
	if err == nil {
		err = t.f.save("original.json", o)
	}
	if err != nil {
		return unwritable(err, t.f.path("original.json"))
	}
	return unwritableOrNil(t.f.dropOriginals(o.Dir), t.f.path("original.json"))
}

// dropOriginals removes kept keystores but one.
func (f folder) dropOriginals(but string) error {
	dirs, _ := filepath.Glob(f.path("original-*"))
	for _, d := range dirs {
		if filepath.Base(d) == but {
			continue
		}
		if err := f.d.removeAll(d); err != nil {
			return err
		}
	}
	return nil
}

// givesBack says whether the plan puts a kept leaf of another CA back.
func (p Plan) givesBack() bool { return p.GiveBack != [32]byte{} }

// returning is the kept keystore as the new one of this move, if it is the one that is wanted and is good for long enough.
func (t *transaction) returning() (file, *keystore.KeyStore, error) {
	refuse := func(reason, format string, args ...any) (file, *keystore.KeyStore, error) {
		return file{}, nil, fault.New(fault.Refused, reason, format, args...).Do("this node keeps the certificate of ours: name it with --except when the rotation is turned round")
	}
	o, err := t.f.original()
	switch {
	case err != nil:
		return file{}, nil, err
	case o == nil:
		return refuse("kept-missing", "nothing is kept of the certificate that store %s had before it was taken over", t.site.Store.Name)
	case o.Leaf != hex.EncodeToString(t.plan.GiveBack[:]):
		return refuse("kept-other", "certificate %.12s is kept, and %.12s is to come back", o.Leaf, hex.EncodeToString(t.plan.GiveBack[:]))
	case !t.i.o.Now().Before(o.until()):
		return refuse("kept-ends", "the kept certificate ends on %s: it could be put back until %s", o.NotAfter.UTC().Format(time.RFC3339), o.until().UTC().Format(time.RFC3339))
	}
	data, err := t.f.originalData(o)
	if err != nil {
		return file{}, nil, err
	}
	key, err := keystore.DecodeKeyStore(t.site.Store.Format, data, t.site.Store.KeystorePassword)
	if err != nil {
		return refuse("kept-unreadable", "the kept keystore cannot be read as the store is configured now (%s): were its format or password changed?", fault.From(err).Message)
	}
	if key.Leaf() == nil || anchorID(key.Leaf()) != o.Leaf {
		return refuse("kept-changed", "the kept keystore holds another certificate than %.12s", o.Leaf)
	}
	f := t.new.keystore
	f.data = data
	return t.inherit(f, t.site.Store.KeystorePath, 0o600), key, nil
}

// Kept is what an installer keeps of another CA, for status and for people.
type Kept struct {
	Leaf [32]byte
	// Path is the folder that holds the keystore as the store held it. It holds a private key.
	Path string
	// NotAfter is the certificate's end; up to Until it is put back.
	NotAfter, Until time.Time
}

// Kept reads what is kept for a store; ok is false when nothing is.
func (i *Installer) Kept(site Site) (k Kept, ok bool) {
	f := i.folder(site)
	o, err := f.original()
	if err != nil || o == nil {
		return k, false
	}
	copy(k.Leaf[:], unhex(o.Leaf))
	k.Path, k.NotAfter, k.Until = f.path(filepath.Base(o.Dir)), o.NotAfter, o.until()
	return k, true
}

// Forget removes what is kept of one leaf, key first. Anything else that is kept stays.
func (i *Installer) Forget(_ context.Context, site Site, leaf [32]byte) error {
	t, end, err := i.begin(site)
	if err != nil {
		return err
	}
	defer end()
	o, err := t.f.original()
	if err != nil || o == nil || o.Leaf != hex.EncodeToString(leaf[:]) {
		return err
	}
	if err := t.f.dropOriginals(""); err != nil {
		return unwritable(err, t.f.path("original.json"))
	}
	if err := t.f.d.remove(t.f.path("original.json")); err != nil {
		return unwritable(err, t.f.path("original.json"))
	}
	return unwritableOrNil(t.f.d.syncFolder(t.f.dir), t.f.dir)
}

// keptFacts tells of a kept leaf that could come back: one whose file is gone, changed or unreadable is not told.
func (f folder) keptFacts(t *transaction, disk pair, to *agentv1.StoreFacts) {
	o, err := f.original()
	if err != nil || o == nil {
		return
	}
	data, err := f.originalData(o)
	if err != nil {
		return
	}
	key, err := keystore.DecodeKeyStore(t.site.Store.Format, data, t.site.Store.KeystorePassword)
	if err != nil || key.Leaf() == nil || anchorID(key.Leaf()) != o.Leaf {
		return
	}
	to.KeptSha256, to.KeptUntil = unhex(o.Leaf), timestamppb.New(o.until())
	if id := (pair{key: key, anchors: disk.anchors}).root(); id != "" {
		to.KeptAnchorSha256 = unhex(id)
	}
}
