package rest

import (
	"context"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/cassandra-security-manager/csm/controller/backup"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

// Backup is one encrypted copy of the state of the system.
type Backup struct {
	Name       string    `json:"name"`
	UID        string    `json:"uid"`
	ETag       string    `json:"etag"`
	Revision   uint64    `json:"revision"`
	CreateTime time.Time `json:"createTime"`
	State      string    `json:"state" enum:"running,ready,failed"`
	Controller string    `json:"controller" doc:"that wrote it"`
	Location   string    `json:"location" doc:"file on that controller, or on what it mounts"`
	Index      uint64    `json:"index" doc:"of the newest entry in it"`
	Size       int64     `json:"size" doc:"bytes"`
	SHA256     string    `json:"sha256,omitempty"`
	Version    string    `json:"version,omitempty" doc:"of the controller that wrote it"`
	Scheduled  bool      `json:"scheduled"`
	VerifyTime time.Time `json:"verifyTime,omitzero" doc:"when it was last decrypted, restored for a trial and read to its end"`
	Problem    string    `json:"problem,omitempty"`
}

func backupOf(b backup.Backup) Backup {
	return Backup{Name: resource.Backup(b.ID), UID: b.ID, ETag: etag(b.Revision), Revision: b.Revision, CreateTime: b.Created, State: b.State, Controller: b.Controller,
		Location: b.Location, Index: b.Index, Size: b.Size, SHA256: hex.EncodeToString(b.SHA256), Version: b.Version, Scheduled: b.Scheduled,
		VerifyTime: b.Verified, Problem: b.Problem}
}

func (s *server) backups() {
	tags := []string{"backups"}
	const base = "/v1/system/backups"
	type Path struct {
		Backup string `path:"backup" maxLength:"63"`
	}
	one := func(b backup.Backup, err error) (*One[Backup], error) {
		v := backupOf(b)
		return &One[Backup]{ETag: v.ETag, Body: v}, err
	}
	handle(s, s.watchable(huma.Operation{OperationID: "listBackups", Method: http.MethodGet, Path: base, Tags: tags,
		Summary: "List backups: those that the state knows, and what else lies in the folder of the controller that answers"}), "backup:list",
		func(ctx context.Context, in *struct{ List }) (*PageOutput[Backup], error) {
			if err := plainList(in.List, "backups"); err != nil {
				return nil, err
			}
			all, err := s.Backups.List(ctx)
			if err != nil {
				return nil, err
			}
			name := func(b backup.Backup) string { return b.ID }
			return paged(ctx, s, in.List, backupOf, func(token string) ([]backup.Backup, string, error) {
				page, next := slicePage(byName(all, name), name, in.size(), token)
				return page, next, nil
			})
		})
	handle(s, huma.Operation{OperationID: "getBackup", Method: http.MethodGet, Path: base + "/{backup}", Tags: tags, Summary: "Get a backup"}, "backup:get",
		func(ctx context.Context, in *struct {
			Path
			Read
		}) (*One[Backup], error) {
			return one(s.Backups.Get(ctx, in.Backup))
		})
	handle(s, huma.Operation{OperationID: "createBackup", Method: http.MethodPost, Path: base, Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Begin a backup on the controller that answers; it is verified when it is written"}, "backup:create",
		func(ctx context.Context, in *struct {
			Created
			Body struct {
				Reason string `json:"reason,omitempty" maxLength:"1024"`
			}
		}) (*One[Backup], error) {
			if in.ValidateOnly {
				if s.Backups.Folder == "" {
					return nil, fault.New(fault.Refused, "no-backup-folder", "%s has no folder for backups", s.Name).Do("set backup.to in its controller.yaml")
				}
				return &One[Backup]{}, nil
			}
			return one(s.Backups.Create(ctx, actor(ctx), in.Body.Reason))
		})
	handle(s, huma.Operation{OperationID: "verifyBackup", Method: http.MethodPost, Path: base + "/{backup}:verify", Tags: tags, DefaultStatus: http.StatusAccepted,
		Summary: "Begin to read a backup back on the controller that answers; verifyTime tells when that was done"}, "backup:verify",
		func(ctx context.Context, in *struct {
			Path
			Created
		}) (*One[Backup], error) {
			if in.ValidateOnly {
				return one(s.Backups.Get(ctx, in.Backup))
			}
			return one(s.Backups.Verify(ctx, in.Backup, actor(ctx)))
		})
}
