package server

import (
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/jonboulle/clockwork"

	"github.com/cassandra-security-manager/csm/controller/api/rest"
	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/controller/keyring"
	"github.com/cassandra-security-manager/csm/controller/state"
	"github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/config"
)

// BackupConfig says where backups go and when. Without To there are none on this controller.
type BackupConfig struct {
	// To is a folder, file:///var/backups/csm: a mount that all controllers share, or a local one that is carried away.
	To string `yaml:"to"`
	// Every is how long the leader lets pass between two; 0 leaves it to `csm backup create`.
	Every time.Duration `yaml:"every"`
	// Keep is how many stay in the folder.
	Keep int `yaml:"keep"`
	// Recipients of age (age1…) can open them beside the controllers and the recovery share.
	Recipients []string `yaml:"recipients"`
}

// minEvery keeps the schedule from doing nothing else.
const minEvery = time.Minute

func (b BackupConfig) folder() (string, error) {
	if b.To == "" {
		return "", nil
	}
	u, err := url.Parse(b.To)
	if err != nil || u.Scheme != "file" || u.Host != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("%.200q is not a folder", b.To)
	}
	return filepath.Clean(u.Path), nil
}

func (b BackupConfig) check(p *config.Problems) {
	if _, err := b.folder(); err != nil {
		p.Add("backup.to", err.Error(), "use file:// and an absolute path, for example file:///var/backups/csm")
	}
	if b.Every != 0 && (b.Every < minEvery || b.To == "") {
		p.Add("backup.every", "is of no use as it stands", "name a folder in backup.to and at least 1m here, or leave it out")
	}
	if b.Keep < 0 {
		p.Add("backup.keep", "is negative", "give the number of backups to keep; 0 keeps all")
	}
	if _, err := backup.ParseRecipients(b.Recipients); err != nil {
		p.Add("backup.recipients", err.Error(), "give lines that begin with age1, as age-keygen prints them")
	}
}

// backups is the door to the backups of this controller.
func (s *Server) backups(kek *keyring.KEK) (*backup.Backups, error) {
	folder, err := s.cfg.Backup.folder()
	if err != nil {
		return nil, err
	}
	further, err := backup.ParseRecipients(s.cfg.Backup.Recipients)
	if err != nil {
		return nil, err
	}
	migrations, err := state.Numbers(modules())
	if err != nil {
		return nil, err
	}
	return backup.New(s.dom.store, rest.Log(s.dom.node), kek, s.dom.keyring.Recipients, s.dom.node.IsLeader, clockwork.NewRealClock(), s.log, backup.Options{
		Folder: folder, Every: s.cfg.Backup.Every, Keep: s.cfg.Backup.Keep, Further: further, Scratch: s.cfg.DataDir,
		Controller: s.in.Name, SystemID: s.in.SystemID, Version: cli.Version, Migrations: migrations}), nil
}
