package cli

import (
	"github.com/spf13/cobra"

	ui "github.com/cassandra-security-manager/csm/shared/cli"
)

func (a *app) caCSR() *cobra.Command {
	var region, algorithm string
	c := &cobra.Command{Use: "csr CA", Short: "Make a key for an issuing CA, and the request that your own CA is to sign", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.authorityNames),
		Long:    "The key stays sealed in the system. Have the request signed with CA:TRUE, pathlen:0, keyCertSign and cRLSign, then: csm ca install.",
		Example: "  csm ca csr root --region eu-west > issuer.csr"}
	c.Flags().StringVar(&region, "region", "", "region that it signs for")
	c.Flags().StringVar(&algorithm, "algorithm", "", "P-384 (default), P-521 or RSA-4096")
	_ = c.MarkFlagRequired("region")
	return a.run(c, func(s *session, args []string) error {
		ans, err := s.post(s.authorityName(args[0])+":csr", map[string]any{"region": region, "algorithm": algorithm})
		if err != nil {
			return err
		}
		return s.Print(ui.View{Object: map[string]string{"name": s.authorityName(args[0]), "pem": string(ans.body)}, Text: string(ans.body)})
	})
}

func (a *app) caInstall() *cobra.Command {
	var chain string
	c := &cobra.Command{Use: "install CA", Short: "Install the certificate that answers a request, with the chain above it", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeWith(a.authorityNames),
		Long:    "The chain is PEM: the issuing CA's certificate first, then what is above it, the root last. Key, name, path lengths, dates and signatures are checked.",
		Example: "  cat issuer.pem intermediate.pem corporate-root.pem > chain.pem\n  csm ca install root --chain chain.pem"}
	c.Flags().StringVar(&chain, "chain", "", "file of the chain, - for stdin")
	_ = c.MarkFlagRequired("chain")
	return a.run(c, func(s *session, args []string) error {
		b, err := s.readInput(chain)
		if err != nil {
			return err
		}
		ans, err := s.post(s.authorityName(args[0])+":install", map[string]any{"chain": string(b)})
		if err != nil || s.dryRun {
			return err
		}
		return s.printIssuer(ans)
	})
}
