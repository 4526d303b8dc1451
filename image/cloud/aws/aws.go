// Package aws brings disk images to Amazon EC2: blocks straight into an EBS snapshot, without a bucket and without an import
// task, then an AMI that starts by UEFI, with Secure Boot keys, a TPM and version 2 of the metadata service alone.
//
// Credentials, regions and endpoints are the SDK's: environment, ~/.aws, single sign-on, roles.
package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	sdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ebs"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"

	"github.com/skerry-os/skerry/image/cloud/publish"
)

// Options say what is published, where and for whom. Share are accounts.
type Options struct {
	publish.Options
	Region string // where the blocks go; "" is the SDK's
	Copies []string

	uefiData string // of Keys
}

// Tags that every image and snapshot of ours has.
const (
	tagDisk  = "skerry:disk"  // publish.Disk.ID
	tagImage = "skerry:image" // the image's name, by which snapshots are found whose image is gone
	tagName  = "Name"         // which the console shows, and the operator may choose
)

// Publisher speaks to one account.
type Publisher struct {
	conf    sdk.Config
	account string
	log     func(format string, a ...any)
}

// Open finds credentials and asks whose they are.
func Open(ctx context.Context, region string, log func(string, ...any)) (*Publisher, error) {
	conf, err := config.LoadDefaultConfig(ctx, config.WithRegion(region), config.WithRetryer(func() sdk.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts, o.MaxBackoff, o.RateLimiter = 12, 5*time.Second, ratelimit.None
		})
	}))
	if err != nil {
		return nil, fmt.Errorf("aws: %w", err)
	}
	if conf.Region == "" {
		return nil, errors.New("aws: no region is set; name it by --region or AWS_REGION")
	}
	p := &Publisher{conf: conf, log: log}
	who, err := sts.NewFromConfig(conf).GetCallerIdentity(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("aws: asking whose credentials these are: %w", short(err))
	}
	p.account = sdk.ToString(who.Account)
	return p, nil
}

// Region is where the publisher works unless told otherwise.
func (p *Publisher) Region() string { return p.conf.Region }

func (p *Publisher) ec2(region string) *ec2.Client {
	return ec2.NewFromConfig(p.conf, func(o *ec2.Options) { o.Region = region })
}

func (p *Publisher) ebs(region string) *ebs.Client {
	return ebs.NewFromConfig(p.conf, func(o *ebs.Options) { o.Region = region })
}

// short takes the SDK's wrapping off: what was called, and what the answer was.
func short(err error) error {
	var op *smithy.OperationError
	var api smithy.APIError
	if errors.As(err, &op) && errors.As(err, &api) {
		return fmt.Errorf("%s:%s: %s: %s%w", strings.ToLower(op.Service()), op.Operation(), api.ErrorCode(), api.ErrorMessage(), silent{err})
	}
	return err
}

// silent keeps an error for errors.As without printing it again.
type silent struct{ err error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.err }

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// denied are the codes by which EC2 and EBS say that a right is missing.
var denied = []string{"UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "Client.UnauthorizedOperation"}

// MissingRights is what the credentials lack.
type MissingRights struct {
	Account string
	Actions []string // such as ec2:RegisterImage
}

func (m MissingRights) Error() string {
	policy, _ := json.Marshal(map[string]any{ // strings only: never fails
		"Version":   "2012-10-17",
		"Statement": []any{map[string]any{"Effect": "Allow", "Action": m.Actions, "Resource": "*"}},
	})
	return fmt.Sprintf("aws: the credentials of account %s may not %s; attach this policy to them and try again:\n%s", m.Account, strings.Join(m.Actions, ", "), policy)
}

// rights tries actions without doing anything, and gives those that are refused.
type rights struct {
	missing []string
	err     error
}

// check takes the answer to a try. Whatever else than a refusal comes back, the right is there: it is looked at first.
func (r *rights) check(action string, err error) {
	switch {
	case slices.Contains(denied, code(err)):
		if !slices.Contains(r.missing, action) {
			r.missing = append(r.missing, action)
		}
	case err != nil && code(err) == "" && r.err == nil:
		r.err = err // no answer at all
	}
}

func (p *Publisher) missing(r *rights) error {
	switch {
	case r.err != nil:
		return fmt.Errorf("aws: looking for missing rights: %w", short(r.err))
	case len(r.missing) > 0:
		return MissingRights{p.account, r.missing}
	}
	return nil
}
