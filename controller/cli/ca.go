package cli

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
	"github.com/cassandra-security-manager/csm/shared/resource"
)

func (a *app) caCommand() *cobra.Command {
	return group("ca", "Certificate authorities", a.caList(), a.caGet(), a.caCreate(), a.caIssuer(), a.caChain(), a.caRetire(), a.caCSR(), a.caInstall())
}

func (a *app) caList() *cobra.Command {
	var system bool
	c := &cobra.Command{Use: "list", Short: "List authorities", Args: cobra.NoArgs, Example: "  csm ca list\n  csm ca list --system"}
	c.Flags().BoolVar(&system, "system", false, "the authority of the platform's own identities")
	return a.run(c, func(s *session, _ []string) error {
		path := s.tenantName() + "/authorities"
		if system {
			path = "system/authorities"
		}
		items, raws, doc, err := list[authorityView](s, path, nil, 0)
		if err != nil {
			return err
		}
		t := &ui.Table{Columns: []ui.Column{{Name: "CA"}, {Name: "STATE", Style: stateStyle}, {Name: "ALGORITHM"}, {Name: "REGIONS"}, {Name: "ROOT EXPIRES", Style: expiry}, {Name: "ROOT SHA256", Wide: true}, {Name: "CREATED"}}}
		for _, i := range items {
			var regions []string
			var root issuerView
			for _, is := range i.Issuers {
				if is.Kind == "root" {
					root = is
				} else if is.State == "active" && !slices.Contains(regions, is.Region) {
					regions = append(regions, is.Region)
				}
			}
			t.Add(resource.Last(i.Name), i.State, i.Algorithm, strings.Join(regions, ","), s.ago(root.NotAfter), root.SHA256, s.ago(i.CreateTime))
		}
		return s.Print(ui.View{Object: doc, Items: raws, Table: t})
	})
}

func issuerTable(s *session, is []issuerView) *ui.Table {
	t := &ui.Table{Columns: []ui.Column{{Name: "ISSUER"}, {Name: "KIND"}, {Name: "REGION"}, {Name: "STATE", Style: stateStyle}, {Name: "SUBJECT"}, {Name: "EXPIRES", Style: expiry}, {Name: "SHA256"},
		{Name: "SHARDS", Wide: true, Right: true}, {Name: "URL ID", Wide: true}}}
	for _, i := range is {
		t.Add(resource.Last(i.Name), i.Kind, i.Region, i.State, i.Subject, s.ago(i.NotAfter), finger(i.SHA256), fmt.Sprint(i.Shards), i.PublicID)
	}
	return t
}

func (a *app) caGet() *cobra.Command {
	c := &cobra.Command{Use: "get CA", Short: "Show an authority with its issuers", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.authorityNames), Example: "  csm ca get main\n  csm ca get system"}
	return a.run(c, func(s *session, args []string) error {
		v, raw, err := read[authorityView](s, s.authorityName(args[0]), nil)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: raw, Table: issuerTable(s, v.Issuers)})
	})
}

func (a *app) caCreate() *cobra.Command {
	var display, algorithm string
	var validity time.Duration
	var regions []string
	c := &cobra.Command{Use: "create CA", Short: "Create an authority: its root, and an issuing CA for each region", Args: cobra.ExactArgs(1),
		Example: "  csm ca create main --region eu-west,us-east,ap-south"}
	f := c.Flags()
	f.StringVar(&display, "display-name", "", "for people")
	f.StringVar(&algorithm, "algorithm", "P-384", "P-384, P-521 or RSA-4096")
	f.DurationVar(&validity, "validity", 0, "of the root (default 15 years)")
	f.StringSliceVar(&regions, "region", nil, "make an issuing CA for each of these regions")
	return a.run(c, func(s *session, args []string) error {
		body := map[string]any{"id": args[0], "displayName": display, "algorithm": algorithm, "regions": regions}
		if validity > 0 {
			body["validity"] = validity.String()
		}
		ans, err := s.post(s.tenantName()+"/authorities", body)
		if err != nil {
			return err
		}
		var v authorityView
		if err := decode(ans.body, &v); err != nil {
			return err
		}
		return s.Print(ui.View{Object: ans.body, Table: issuerTable(s, v.Issuers), Note: "authority " + resource.Last(v.Name)})
	})
}

func (a *app) caIssuer() *cobra.Command {
	var region string
	c := &cobra.Command{Use: "create-issuer CA", Short: "Create an issuing CA for a region", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.authorityNames), Example: "  csm ca create-issuer main --region us-east"}
	c.Flags().StringVar(&region, "region", "", "region that it signs for")
	_ = c.MarkFlagRequired("region")
	return a.run(c, func(s *session, args []string) error {
		ans, err := s.post(s.authorityName(args[0])+"/issuers", map[string]any{"region": region})
		if err != nil {
			return err
		}
		return s.printIssuer(ans)
	})
}

func (s *session) printIssuer(ans *answer) error {
	var v issuerView
	if err := decode(ans.body, &v); err != nil {
		return err
	}
	return s.Print(ui.View{Object: ans.body, Table: issuerTable(s, []issuerView{v})})
}

func (a *app) caChain() *cobra.Command {
	var region string
	var anchors bool
	c := &cobra.Command{Use: "chain CA", Short: "Print issuing CAs and root as PEM", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.authorityNames),
		Example: "  csm ca chain main > chain.pem\n  csm ca chain main --anchors | openssl x509 -noout -fingerprint -sha256"}
	c.Flags().StringVar(&region, "region", "", "only the issuer of this region, and the root")
	c.Flags().BoolVar(&anchors, "anchors", false, "only the trust anchors")
	return a.run(c, func(s *session, args []string) error {
		q := url.Values{}
		path := s.authorityName(args[0]) + ":chain"
		if anchors {
			path = s.authorityName(args[0]) + ":anchors"
		} else if region != "" {
			q.Set("region", region)
		}
		ans, err := s.get(path, q)
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: map[string]string{"name": s.authorityName(args[0]), "pem": string(ans.body)}, Text: string(ans.body)})
	})
}

func (a *app) caRetire() *cobra.Command {
	c := &cobra.Command{Use: "retire CA/ISSUER", Short: "Let an issuer sign revocation lists and nothing else", Args: cobra.ExactArgs(1),
		Example: "  csm ca retire main/eu-west-1 --reason replaced --dry-run"}
	return a.run(c, func(s *session, args []string) error {
		name := args[0]
		if !strings.HasPrefix(name, "tenants/") {
			ca, issuer, _ := strings.Cut(args[0], "/")
			name = resource.Issuer(s.authorityName(ca), issuer)
		}
		if err := s.needReason(); err != nil {
			return err
		}
		err := s.confirm(change{verb: "retire", name: name, grave: true, effects: []string{"it signs no certificate any more", "what it signed stays valid"}})
		if err != nil {
			return err
		}
		ans, err := s.post(name+":retire", map[string]any{"reason": s.reason})
		if err != nil {
			return err
		}
		return s.printIssuer(ans)
	})
}
