package main

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strings"
)

// encodedIn returns the name of the encoding in which secret stands in text, or "".
func encodedIn(text, secret string) string {
	j, err := json.Marshal(secret)
	if err != nil {
		return "not JSON"
	}
	for name, v := range map[string]string{
		"plain":     secret,
		"JSON":      string(j[1 : len(j)-1]),
		"base64":    strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "="),
		"base64url": strings.TrimRight(base64.URLEncoding.EncodeToString([]byte(secret)), "="),
		"URL":       url.QueryEscape(secret),
		"hex":       hex.EncodeToString([]byte(secret)),
	} {
		if strings.Contains(text, v) {
			return name
		}
	}
	return ""
}
