package summary

import (
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
)

var errNoKey = errors.New("it is no private key in PEM: PKCS #8, or as cosign encrypts it")

// The PEM types of keys that cosign encrypts with a password.
var cosignTypes = map[string]bool{"ENCRYPTED COSIGN PRIVATE KEY": true, "ENCRYPTED SIGSTORE PRIVATE KEY": true}

// privateKey reads a private key in PEM.
func privateKey(b []byte, password cryptoutils.PassFunc) (crypto.PrivateKey, error) {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, errNoKey
	}
	if cosignTypes[block.Type] {
		pass, err := password(false)
		if err != nil {
			return nil, err
		}
		der, err := encrypted.Decrypt(block.Bytes, pass)
		if err != nil {
			return nil, fmt.Errorf("the password does not open it: %w", err)
		}
		b = pem.EncodeToMemory(&pem.Block{Type: string(cryptoutils.PrivateKeyPEMType), Bytes: der})
	}
	key, err := cryptoutils.UnmarshalPEMToPrivateKey(b, password)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoKey, err)
	}
	return key, nil
}
