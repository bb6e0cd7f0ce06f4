package verifytest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	"github.com/go-openapi/runtime"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	rekortiles "github.com/sigstore/rekor-tiles/v2/pkg/generated/protobuf"
	rekornote "github.com/sigstore/rekor-tiles/v2/pkg/note"
	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/pki"
	"github.com/sigstore/rekor/pkg/types"
	rekordsse "github.com/sigstore/rekor/pkg/types/dsse"
	"github.com/sigstore/rekor/pkg/types/hashedrekord"
	rekorutil "github.com/sigstore/rekor/pkg/util"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"
)

// transparencyLog is a Rekor log, of both versions at once.
type transparencyLog struct {
	url   string
	key   *ecdsa.PrivateKey
	index atomic.Int64 // of the next entry
}

func newLog(url string) (*transparencyLog, error) {
	key, err := newKey()
	return &transparencyLog{url: url, key: key}, err
}

// signed is what a log records.
type signed struct {
	kind     string // hashedrekord or dsse
	artifact []byte // of dsse the envelope, else what the signature is over
	sig      []byte
	by       signer
	at       time.Time
}

// leaf is the root hash of a tree that has body alone: each entry is the only
// leaf of a tree of its own, and its proof is empty (RFC 6962, section 2.1).
func leaf(body []byte) []byte {
	sum := sha256.Sum256(append([]byte{0}, body...))
	return sum[:]
}

func (l *transparencyLog) host() string {
	u, err := url.Parse(l.url)
	if err != nil { // made in hosts
		panic(err)
	}
	return u.Hostname()
}

// record returns the Rekor v1 entry of what was signed.
func (l *transparencyLog) record(ctx context.Context, s signed) (*protorekor.TransparencyLogEntry, error) {
	const version = "0.0.1"
	props := types.ArtifactProperties{PublicKeyBytes: [][]byte{s.by.pem}, PKIFormat: string(pki.X509), SignatureBytes: s.sig}
	switch s.kind {
	case hashedrekord.KIND:
		sum := sha256.Sum256(s.artifact)
		props.ArtifactHash = hex.EncodeToString(sum[:])
	case rekordsse.KIND:
		props.ArtifactBytes = s.artifact
	default:
		return nil, fmt.Errorf("unknown kind of entry %q", s.kind)
	}
	body, err := canonicalEntry(ctx, s.kind, version, props)
	if err != nil {
		return nil, fmt.Errorf("log entry: %w", err)
	}
	id, err := logID(l.key)
	if err != nil {
		return nil, err
	}
	index := l.index.Add(1) - 1
	payload, err := json.Marshal(tlog.RekorPayload{
		Body: base64.StdEncoding.EncodeToString(body), IntegratedTime: s.at.Unix(), LogIndex: index, LogID: hex.EncodeToString(id),
	})
	if err != nil {
		return nil, err
	}
	canonical, err := jsoncanonicalizer.Transform(payload)
	if err != nil {
		return nil, err
	}
	sv, err := signature.LoadECDSASignerVerifier(l.key, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	set, err := sv.SignMessage(bytes.NewReader(canonical))
	if err != nil {
		return nil, err
	}
	checkpoint, err := rekorutil.CreateAndSignCheckpoint(ctx, l.host(), 1, 1, leaf(body), sv)
	if err != nil {
		return nil, err
	}
	return &protorekor.TransparencyLogEntry{
		LogIndex: index, LogId: &protocommon.LogId{KeyId: id},
		KindVersion:       &protorekor.KindVersion{Kind: s.kind, Version: version},
		IntegratedTime:    s.at.Unix(),
		InclusionPromise:  &protorekor.InclusionPromise{SignedEntryTimestamp: set},
		InclusionProof:    &protorekor.InclusionProof{RootHash: leaf(body), TreeSize: 1, Checkpoint: &protorekor.Checkpoint{Envelope: string(checkpoint)}},
		CanonicalizedBody: body,
	}, nil
}

func canonicalEntry(ctx context.Context, kind, version string, props types.ArtifactProperties) ([]byte, error) {
	proposed, err := types.NewProposedEntry(ctx, kind, version, props)
	if err != nil {
		return nil, err
	}
	entry, err := types.CreateVersionedEntry(proposed)
	if err != nil {
		return nil, err
	}
	canonical, err := types.CanonicalizeEntry(ctx, entry)
	if err != nil {
		return nil, err
	}
	again, err := models.UnmarshalProposedEntry(bytes.NewReader(canonical), runtime.JSONConsumer())
	if err != nil {
		return nil, err
	}
	if entry, err = types.UnmarshalEntry(again); err != nil {
		return nil, err
	}
	return entry.Canonicalize(ctx)
}

// recordTiles returns the Rekor v2 entry of a signature over message: a
// hashedrekord 0.0.2, with a checkpoint and neither a promise nor a time.
// https://github.com/sigstore/rekor-tiles/blob/main/CLIENTS.md
func (l *transparencyLog) recordTiles(ctx context.Context, message, sig []byte, by signer) (*protorekor.TransparencyLogEntry, error) {
	algorithm, err := signature.GetDefaultAlgorithmDetails(by.key.Public(), options.WithED25519ph())
	if err != nil {
		return nil, err
	}
	verifier, err := by.tilesVerifier(algorithm.GetSignatureAlgorithm())
	if err != nil {
		return nil, err
	}
	h := algorithm.GetHashType().New()
	h.Write(message)
	entry, err := protojson.Marshal(&rekortiles.Entry{
		ApiVersion: "0.0.2", Kind: hashedrekord.KIND,
		Spec: &rekortiles.Spec{Spec: &rekortiles.Spec_HashedRekordV002{HashedRekordV002: &rekortiles.HashedRekordLogEntryV002{
			Data:      &protocommon.HashOutput{Algorithm: algorithm.GetProtoHashType(), Digest: h.Sum(nil)},
			Signature: &rekortiles.Signature{Content: sig, Verifier: verifier},
		}}},
	})
	if err != nil {
		return nil, err
	}
	body, err := jsoncanonicalizer.Transform(entry)
	if err != nil {
		return nil, err
	}
	checkpoint, err := l.checkpoint(ctx, leaf(body))
	if err != nil {
		return nil, err
	}
	id, err := logID(l.key)
	if err != nil {
		return nil, err
	}
	return &protorekor.TransparencyLogEntry{
		LogId:             &protocommon.LogId{KeyId: id},
		KindVersion:       &protorekor.KindVersion{Kind: hashedrekord.KIND, Version: "0.0.2"},
		InclusionProof:    &protorekor.InclusionProof{RootHash: leaf(body), TreeSize: 1, Checkpoint: &protorekor.Checkpoint{Envelope: checkpoint}},
		CanonicalizedBody: body,
	}, nil
}

// checkpoint signs the root of a tree of one entry as a note.
// https://github.com/transparency-dev/formats/blob/main/log/README.md
func (l *transparencyLog) checkpoint(ctx context.Context, rootHash []byte) (string, error) {
	sv, err := signature.LoadECDSASignerVerifier(l.key, crypto.SHA256)
	if err != nil {
		return "", err
	}
	noteSigner, err := rekornote.NewNoteSigner(ctx, l.host(), sv)
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("%s\n1\n%s\n", l.host(), base64.StdEncoding.EncodeToString(rootHash))
	signedNote, err := note.Sign(&note.Note{Text: text}, noteSigner)
	return string(signedNote), err
}

// tilesVerifier is how Rekor v2 writes down a key or a certificate.
func (s signer) tilesVerifier(algorithm protocommon.PublicKeyDetails) (*rekortiles.Verifier, error) {
	if s.cert != nil {
		return &rekortiles.Verifier{KeyDetails: algorithm, Verifier: &rekortiles.Verifier_X509Certificate{
			X509Certificate: &protocommon.X509Certificate{RawBytes: s.cert.Raw},
		}}, nil
	}
	der, err := x509.MarshalPKIXPublicKey(s.key.Public())
	if err != nil {
		return nil, err
	}
	return &rekortiles.Verifier{KeyDetails: algorithm, Verifier: &rekortiles.Verifier_PublicKey{PublicKey: &rekortiles.PublicKey{RawBytes: der}}}, nil
}

// annotation is what cosign keeps of a Rekor v1 entry in the legacy layout.
func annotation(e *protorekor.TransparencyLogEntry) (string, error) {
	b, err := json.Marshal(map[string]any{
		"SignedEntryTimestamp": e.InclusionPromise.GetSignedEntryTimestamp(),
		"Payload": map[string]any{
			"body": base64.StdEncoding.EncodeToString(e.CanonicalizedBody), "integratedTime": e.IntegratedTime,
			"logIndex": e.LogIndex, "logID": hex.EncodeToString(e.LogId.KeyId),
		},
	})
	return string(b), err
}
