package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dev/holdfast/internal/config"
	"github.com/holdfast-dev/holdfast/internal/fault"
	"github.com/holdfast-dev/holdfast/ledger"
	"github.com/holdfast-dev/holdfast/reconciler"
	"github.com/holdfast-dev/holdfast/verify"
	"github.com/holdfast-dev/holdfast/verify/commit"
)

// admit decides whether the operator's file may take the place of the one that
// was accepted last, records what became of it, and keeps it if it may. With
// required, an allowed_signers file, one of its keys must have signed it
// whatever it says itself. Nothing must be started before.
func (a *app) admit(ctx context.Context, required string) error {
	admission, err := a.admission(ctx, required)
	if err != nil {
		if fault.KindOf(err) != fault.Denied {
			return err
		}
		return errors.Join(err, a.recordRefused(ctx, admission, err))
	}
	if err := a.recordAdmitted(ctx, admission); err != nil {
		return err
	}
	record := a.cfg.Record(admission.Signer, time.Now())
	record.Required = required
	return record.Write(a.cfg.StateDir)
}

// admission judges the operator's file by what was accepted last, and by the keys
// of the allowed_signers file required, if there is one. It records nothing.
func (a *app) admission(ctx context.Context, required string) (config.Admission, error) {
	if err := a.takeUpRevocations(ctx); err != nil {
		return config.Admission{}, err
	}
	check := func(signers []config.Signer, keys map[string][]byte, message, signature []byte) (string, error) {
		return checkConfiguration(signers, keys, message, signature, time.Now(), a.revoked)
	}
	last, err := config.ReadRecord(a.cfg.StateDir)
	if err != nil {
		return config.Admission{}, err
	}
	out, err := a.cfg.Admit(last, check)
	if err != nil || required == "" {
		return out, err
	}
	b, err := os.ReadFile(required)
	if err != nil {
		return out, fault.New(fault.Invalid, "holdfast.run", "name an allowed_signers file that the daemon can read", "--require-signed: %w", err)
	}
	signers := []config.Signer{{Name: filepath.Base(required), AllowedSignersFile: required}}
	out.Signer, err = a.cfg.RequireSigned(signers, map[string][]byte{required: b}, check)
	return out, err
}

// requiredBefore returns the file that --require-signed named when the daemon
// with this state directory was started last.
func requiredBefore(cfg *config.Loaded) (string, error) {
	last, err := config.ReadRecord(cfg.StateDir)
	if err != nil || last == nil {
		return "", err
	}
	return last.Required, nil
}

// checkConfiguration checks the signature of an operator's file.
func checkConfiguration(signers []config.Signer, keys map[string][]byte, message, signature []byte, now time.Time, revoked *verify.Revocations) (string, error) {
	return checkDocument(commit.NamespaceConfig, signers, keys, message, signature, now, revoked)
}

// checkDocument returns the name of the signer who signed message for a
// namespace. keys is the content of the files that signers name.
func checkDocument(namespace string, signers []config.Signer, keys map[string][]byte, message, signature []byte, now time.Time, revoked *verify.Revocations) (string, error) {
	var trusted []commit.Signer
	for _, s := range signers {
		parsed, err := commit.ParseAllowedSigners(s.AllowedSignersFile, keys[s.AllowedSignersFile])
		if err != nil {
			return "", err
		}
		signer := commit.Signer{Name: s.Name, SSH: parsed}
		if s.NotBefore != nil {
			signer.NotBefore = s.NotBefore.Time
		}
		if s.NotAfter != nil {
			signer.NotAfter = s.NotAfter.Time
		}
		trusted = append(trusted, signer)
	}
	name, err := commit.VerifyDocument(namespace, trusted, message, signature, now, revoked)
	return name, fault.Wrap(fault.Denied, "holdfast.configuration", "", err)
}

// takeUpRevocations makes known which keys were revoked before the last stop:
// the configuration is judged before the reconciler takes up all that people
// ordered.
func (a *app) takeUpRevocations(ctx context.Context) error {
	orders, err := a.ledger.Orders(ctx)
	for _, n := range orders {
		reconciler.TakeUpRevocation(a.revoked, n.Entry)
	}
	return err
}

// recordedRevocations returns what the ledger in cfg's state directory says was
// revoked, up to its checkpoint: nothing where no daemon ever ran.
func recordedRevocations(ctx context.Context, cfg *config.Loaded) (*verify.Revocations, error) {
	out := new(verify.Revocations)
	if cfg.StateDir == "" { // trust rules alone
		return out, nil
	}
	if _, err := os.Stat(ledgerDir(cfg)); errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	key, err := os.ReadFile(ledgerPub(cfg))
	if err != nil {
		return out, err
	}
	r, err := ledger.OpenReader(ledgerDir(cfg), strings.TrimSpace(string(key)))
	if err != nil {
		return out, err
	}
	return out, r.Scan(ctx, 0, func(_ ledger.Index, e ledger.Entry) error {
		reconciler.TakeUpRevocation(out, e)
		return nil
	})
}

func (a *app) recordAdmitted(ctx context.Context, admission config.Admission) error {
	note := fmt.Sprintf("%s, %s", a.cfg.Digest, admission.Verdict)
	if admission.Signer != "" {
		note += ", signed by " + admission.Signer
	}
	if len(admission.Looser) > 0 {
		note += ": " + admission.Looser[0]
	}
	return a.recordConfiguration(ctx, ledger.Entry{Type: ledger.Configuration, Outcome: string(admission.Verdict), Note: note}, admission)
}

func (a *app) recordRefused(ctx context.Context, admission config.Admission, refusal error) error {
	e := ledger.Entry{Type: ledger.Refused, Outcome: "configuration", Subject: a.cfg.Digest.String(), Note: refusal.Error()}
	return a.recordConfiguration(ctx, e, admission)
}

// recordConfiguration appends an entry with the differences as its body.
func (a *app) recordConfiguration(ctx context.Context, e ledger.Entry, admission config.Admission) error {
	e.Note = a.secrets.scrub(e.Note)
	b, err := json.MarshalIndent(admission.Comparison, "", " ")
	if err != nil {
		return fmt.Errorf("differences of the configuration: %w", err)
	}
	_, err = a.ledger.Append(ctx, e, map[string][]byte{"differences": []byte(a.secrets.scrub(string(b)))})
	return err
}
