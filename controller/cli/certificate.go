package cli

import (
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/fault"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) certificateCommand() *cobra.Command {
	return group("certificate", "Certificates, issued and found", a.certificateList(), a.certificateGet(), a.certificateShow(), a.certificateIssue(),
		a.certificateRevoke(), a.certificateSearch(), a.certificateImport())
}

func certificateTable(s *session, cs []certificateView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "CERTIFICATE"}, {Name: "STATE", Style: stateStyle}, {Name: "FOR"}, {Name: "NAMES"}, {Name: "EXPIRES", Style: expiry}, {Name: "ISSUED"},
		{Name: "ISSUER"}, {Name: "TEMPLATE", Wide: true}, {Name: "ALGORITHM", Wide: true}, {Name: "SERIAL", Wide: true}, {Name: "BY", Wide: true}}}
	for _, c := range cs {
		who := c.Subject
		switch {
		case c.Node != "":
			who = short(c.Node) + " " + c.Store
		case c.Identity != "":
			who = actorName(c.Identity)
		}
		t.Add(finger(resource.Last(c.Name)), c.State, who, namesCell(c.DNS, c.IPs), s.ago(c.NotAfter), s.ago(c.CreateTime), resource.Last(c.Issuer), c.Template, c.Algorithm, c.Serial, actorName(c.Actor))
	}
	return t
}

func (a *app) certificateList() *cobra.Command {
	var found, system bool
	var filter, order string
	var limit int
	c := &cobra.Command{Use: "list", Short: "List certificates", Args: cobra.NoArgs,
		Long: "Issued ones, newest first; with --found, what agents saw in files and stores of their nodes, whoever issued it.\n" +
			"Filters: state=active, cluster=prod-eu, node=prod-eu/n7, issuer=…, template=node, serial=…, notAfter<30d, dns:part; --found: known=false.",
		Example: "  csm certificate list -c prod-eu\n  csm certificate list --filter 'notAfter<30d AND state=active' --order-by notAfter\n  csm certificate list --found --filter known=false"}
	c.Flags().BoolVar(&found, "found", false, "what agents found on their nodes")
	c.Flags().BoolVar(&system, "system", false, "identities of the platform itself: controllers, agents, administrators")
	c.Flags().StringVar(&filter, "filter", "", "conditions joined by AND")
	c.Flags().StringVar(&order, "order-by", "", "createTime, notAfter, each with ' desc'")
	c.Flags().IntVar(&limit, "limit", 100, "how many; 0 for all")
	return a.run(c, func(s *session, _ []string) error {
		q := url.Values{}
		if s.ctx.Cluster != "" && !system {
			filter = strings.TrimSuffix("cluster="+s.ctx.Cluster+" AND "+filter, " AND ")
		}
		if filter != "" {
			q.Set("filter", filter)
		}
		if order != "" {
			q.Set("orderBy", order)
		}
		if found {
			return s.listFound(q, limit)
		}
		path := s.tenantName() + "/certificates"
		if system {
			path = "system/certificates"
		}
		return s.listCertificates(path, q, limit)
	})
}

func (s *session) listCertificates(path string, q url.Values, limit int) error {
	items, raws, doc, err := list[certificateView](s, path, q, limit)
	if err != nil {
		return err
	}
	v := ui.View{Object: doc, Items: raws, Table: certificateTable(s, items)}
	if limit > 0 && len(items) == limit {
		v.Note = fmt.Sprintf("the first %d; --limit 0 shows all", limit)
	}
	return s.Print(v)
}

func (s *session) listFound(q url.Values, limit int) error {
	items, raws, doc, err := list[foundView](s, s.tenantName()+"/foundCertificates", q, limit)
	if err != nil {
		return err
	}
	t := &ui.Table{Columns: []ui.Column{{Name: "NODE"}, {Name: "PATH"}, {Name: "FORMAT"}, {Name: "SUBJECT"}, {Name: "EXPIRES", Style: expiry}, {Name: "KEY"}, {Name: "BY CSM"}, {Name: "MODE"},
		{Name: "ENTRY", Wide: true}, {Name: "ISSUER", Wide: true}, {Name: "ALGORITHM", Wide: true}, {Name: "SHA256", Wide: true}}}
	for _, f := range items {
		t.Add(short(f.Node), f.Path, f.Format, f.Subject, s.ago(f.NotAfter), yesNo(f.HasPrivateKey), yesNo(f.Known != ""), f.Mode, f.Entry, f.Issuer, f.Algorithm, f.SHA256)
	}
	return s.Print(ui.View{Object: doc, Items: raws, Table: t})
}

// certificateName finds a certificate by its name, its fingerprint, or the beginning of it.
func (s *session) certificateName(arg string) (string, error) {
	if strings.Contains(arg, "/") {
		return arg, nil
	}
	arg = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(arg, "sha256:"), ":", ""))
	if len(arg) == 64 {
		return resource.Certificate(s.ctx.Tenant, arg), nil
	}
	items, _, _, err := list[certificateView](s, s.tenantName()+"/certificates:search", url.Values{"query": {arg}}, 50)
	if err != nil {
		return "", err
	}
	var names []string
	for _, c := range items {
		if strings.HasPrefix(resource.Last(c.Name), arg) {
			names = append(names, c.Name)
		}
	}
	switch len(names) {
	case 1:
		return names[0], nil
	case 0:
		return "", fault.New(fault.NotFound, "no-certificate", "no certificate begins with %.64q", arg).Do("`csm certificate search` looks for names and serials")
	}
	return "", fault.New(fault.Invalid, "ambiguous", "%d certificates begin with %q", len(names), arg).Do("write more of the fingerprint")
}

func (a *app) certificateGet() *cobra.Command {
	c := &cobra.Command{Use: "get CERTIFICATE", Short: "Show what is known of a certificate", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.certificateNames),
		Example: "  csm certificate get 9f2c01ab\n  csm certificate get 9f2c01ab -o json | jq -r .pem"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.certificateName(args[0])
		if err != nil {
			return err
		}
		v, raw, err := read[certificateView](s, name, nil)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: raw, Pairs: s.certificatePairs(v)})
	})
}

func (s *session) certificatePairs(v certificateView) ui.Pairs {
	var p ui.Pairs
	p.Add("certificate", "%s", v.Name)
	p.Add("state", "%s", v.State)
	if !v.RevokeTime.IsZero() {
		p.Add("revoked", "%s: %s", s.at(v.RevokeTime), v.RevokeReason)
	}
	p.Add("subject", "%s", v.Subject)
	p.Add("names", "%s", strings.Join(append(append(v.DNS, v.IPs...), v.URIs...), ", "))
	p.Add("node", "%s", v.Node)
	p.Add("store", "%s", v.Store)
	p.Add("identity", "%s", v.Identity)
	p.Add("issuer", "%s", v.Issuer)
	p.Add("serial", "%s", v.Serial)
	p.Add("template", "%s", v.Template)
	p.Add("key", "%s", v.Algorithm)
	p.Add("valid from", "%s", s.at(v.NotBefore))
	p.Add("valid until", "%s", s.at(v.NotAfter))
	p.Add("renews", "%s", s.at(v.RenewTime))
	p.Add("asked for by", "%s", actorName(v.Actor))
	return p
}

func (a *app) certificateShow() *cobra.Command {
	c := &cobra.Command{Use: "show CERTIFICATE", Short: "Print the certificate as PEM", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.certificateNames),
		Example: "  csm certificate show 9f2c01ab | openssl x509 -noout -text"}
	return a.run(c, func(s *session, args []string) error {
		name, err := s.certificateName(args[0])
		if err != nil {
			return err
		}
		v, raw, err := read[certificateView](s, name, nil)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: raw, Text: v.PEM})
	})
}

func (a *app) certificateIssue() *cobra.Command {
	var csr, authority, region, subject, validity, renews, out string
	var dns, ips []string
	c := &cobra.Command{Use: "issue", Short: "Issue a certificate for an application from a request (CSR)", Args: cobra.NoArgs,
		Long: "The key stays where it was made: only the request travels. Names are those of the request, unless --dns or --ip are given.",
		Example: "  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout app.key -out app.csr -subj /CN=app -addext subjectAltName=DNS:app.example\n" +
			"  csm certificate issue --csr app.csr --ca main --out app.pem"}
	f := c.Flags()
	f.StringVar(&csr, "csr", "", "file with the request, PEM; - for stdin")
	f.StringVar(&authority, "ca", "", "authority that signs")
	f.StringVar(&region, "region", "", "prefer the issuer of this region")
	f.StringSliceVar(&dns, "dns", nil, "DNS names")
	f.StringSliceVar(&ips, "ip", nil, "addresses")
	f.StringVar(&subject, "subject", "", "common name")
	f.StringVar(&validity, "validity", "", "time span like 720h")
	f.StringVar(&renews, "renews", "", "certificate that this one replaces: its end is its place before a busy signer")
	f.StringVar(&out, "out", "", "write the chain to this file")
	_ = c.MarkFlagRequired("csr")
	_ = c.MarkFlagRequired("ca")
	return a.run(c, func(s *session, _ []string) error {
		pem, err := s.readInput(csr)
		if err != nil {
			return err
		}
		if renews != "" {
			if renews, err = s.certificateName(renews); err != nil {
				return err
			}
		}
		ans, err := s.post(s.tenantName()+"/certificates:issue", map[string]any{"csr": string(pem), "authority": s.authorityName(authority), "region": region,
			"dns": dns, "ips": ips, "subject": subject, "validity": validity, "renews": renews})
		if err != nil {
			return err
		}
		var v certificateView
		if err := decode(ans.body, &v); err != nil {
			return err
		}
		if out == "" || s.dryRun {
			return s.Print(ui.View{Object: ans.body, Text: v.Chain})
		}
		if err := os.WriteFile(out, []byte(v.Chain), 0o644); err != nil {
			return fault.Wrap(err, fault.Partial, "not-written", "the certificate %s was issued, but not written", resource.Last(v.Name)).Do("get it with `csm certificate show %s`", finger(resource.Last(v.Name)))
		}
		s.Say("wrote %s", out)
		return s.Print(ui.View{Object: ans.body, Table: certificateTable(s, []certificateView{v})})
	})
}

func (a *app) certificateRevoke() *cobra.Command {
	var why string
	c := &cobra.Command{Use: "revoke CERTIFICATE", Short: "Revoke a certificate; says what that does not do", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.certificateNames),
		Long:    "A default Cassandra checks no revocation list: revoking alone locks nobody out.",
		Example: "  csm certificate revoke 9f2c01ab --why keyCompromise --yes"}
	c.Flags().StringVar(&why, "why", "unspecified", "unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation or privilegeWithdrawn")
	return a.run(c, func(s *session, args []string) error {
		name, err := s.certificateName(args[0])
		if err != nil {
			return err
		}
		v, _, err := read[struct{ ETag, Subject string }](s, name, nil)
		if err != nil {
			return err
		}
		err = s.confirm(change{verb: "revoke", name: name, etag: v.ETag, effects: []string{v.Subject, "it cannot be taken back", "it enters the revocation list; a default Cassandra does not look at it"}})
		if err != nil {
			return err
		}
		ans, err := s.post(name+":revoke", map[string]any{"reason": why})
		if err != nil {
			return err
		}
		var r struct {
			Certificate certificateView
			Notice      string
		}
		if err := decode(ans.body, &r); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Table: certificateTable(s, []certificateView{r.Certificate}), Note: r.Notice, Name: func(any) string { return name }})
	})
}

func (a *app) certificateSearch() *cobra.Command {
	var limit int
	c := &cobra.Command{Use: "search TEXT", Short: "Find certificates by a part of a name, a serial or a fingerprint", Args: cobra.ExactArgs(1),
		Example: "  csm certificate search n7.example\n  csm certificate search 10.0.0.7 -o name"}
	c.Flags().IntVar(&limit, "limit", 100, "how many; 0 for all")
	return a.run(c, func(s *session, args []string) error {
		return s.listCertificates(s.tenantName()+"/certificates:search", url.Values{"query": {args[0]}}, limit)
	})
}
