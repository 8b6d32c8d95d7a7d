"""Made secrets of every kind that may meet a run, and ordinary texts that only look a little like one.

All are made from pieces here, so that no scanner takes this file for a leak.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

_MIXED = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zCfFhJkLqRwT7yU2iO5p"
_HEX = "0f1e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0"
_BASE64 = base64.b64encode(_HEX.encode()).decode()


def _mixed(length: int, shift: int = 0) -> str:
    """Letters and digits that no other secret here holds at this place."""
    return "".join(_MIXED[(i * 7 + shift * 11) % len(_MIXED)] for i in range(length))


def _hex(length: int, shift: int = 0) -> str:
    return "".join(_HEX[(i * 5 + shift * 3) % len(_HEX)] for i in range(length))


def _pem(kind: str, lines: int = 3) -> str:
    body = "\n".join(_mixed(48, shift=40 + i) for i in range(lines))
    return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"


_JWT = f"eyJ{_mixed(20, 1)}.eyJ{_mixed(40, 2)}.{_mixed(43, 3)}"
_JWE = f"eyJ{_mixed(20, 4)}.{_mixed(30, 5)}.{_mixed(16, 6)}.{_mixed(30, 7)}.{_mixed(22, 8)}"

LOOKS: Mapping[str, str] = {
    "Hugging Face": "hf_" + _mixed(34, 1),
    "Hugging Face organisation": "api_org_" + _mixed(34, 2),
    "OpenAI": "sk-" + _mixed(48, 3),
    "OpenAI project": "sk-proj-" + _mixed(30, 4) + "-" + _mixed(20, 5) + "_" + _mixed(20, 6),
    "OpenAI service account": "sk-svcacct-" + _mixed(40, 7),
    "Anthropic-like": "sk-ant-api03-" + _mixed(60, 8) + "-" + _mixed(20, 9) + "AA",
    "OpenRouter": "sk-or-v1-" + _hex(64, 1),
    "AWS access key": "AKIA" + _mixed(16, 10).upper(),
    "AWS temporary key": "ASIA" + _mixed(16, 11).upper(),
    "Google API key": "AIza" + _mixed(35, 12),
    "Google OAuth": "ya29." + _mixed(60, 13),
    "Google client secret": "GOCSPX-" + _mixed(28, 14),
    "Google refresh token": "1//0" + _mixed(40, 15),
    "Azure client secret": _mixed(3, 16) + "8Q~" + _mixed(34, 17),
    "GitHub": "ghp_" + _mixed(36, 18),
    "GitHub OAuth": "gho_" + _mixed(36, 19),
    "GitHub app": "ghs_" + _mixed(36, 20),
    "GitHub refresh": "ghr_" + _mixed(36, 21),
    "GitHub fine-grained": "github_pat_" + _mixed(22, 22) + "_" + _mixed(59, 23),
    "GitLab": "glpat-" + _mixed(20, 24),
    "GitLab runner": "glrt-" + _mixed(20, 25),
    "Slack bot": "xoxb-" + "123456789012-" + _mixed(24, 26),
    "Slack app": "xapp-1-A" + _mixed(30, 27),
    "Stripe": "sk_live_" + _mixed(24, 28),
    "Stripe restricted": "rk_test_" + _mixed(24, 29),
    "Stripe webhook": "whsec_" + _mixed(32, 30),
    "npm": "npm_" + _mixed(36, 31),
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + _mixed(70, 32),
    "RubyGems": "rubygems_" + _hex(48, 2),
    "Docker Hub": "dckr_pat_" + _mixed(27, 33),
    "DigitalOcean": "dop_v1_" + _hex(64, 3),
    "Databricks": "dapi" + _hex(32, 4),
    "NVIDIA": "nvapi-" + _mixed(60, 34),
    "xAI": "xai-" + _mixed(60, 35),
    "Groq": "gsk_" + _mixed(52, 36),
    "Replicate": "r8_" + _mixed(37, 37),
    "Together": "tgp_v1_" + _mixed(43, 38),
    "Perplexity": "pplx-" + _mixed(48, 39),
    "LangSmith": "lsv2_pt_" + _hex(32, 5) + "_" + _hex(10, 6),
    "Pinecone": "pcsk_" + _mixed(50, 40),
    "SendGrid": "SG." + _mixed(22, 41) + "." + _mixed(43, 42),
    "Twilio": "SK" + _hex(32, 7),
    "Mailgun": "key-" + _hex(32, 8),
    "Mailchimp": _hex(32, 9) + "-us12",
    "Telegram": "123456789:AA" + _mixed(33, 43),
    "Discord": "M" + _mixed(25, 44) + "." + _mixed(6, 45) + "." + _mixed(38, 46),
    "Vault": "hvs." + _mixed(90, 47),
    "Terraform": _mixed(14, 48) + ".atlasv1." + _mixed(64, 49),
    "Grafana": "glsa_" + _mixed(32, 50) + "_" + _hex(8, 10),
    "New Relic": "NRAK-" + _mixed(27, 51).upper(),
    "Postman": "PMAK-" + _hex(24, 11) + "-" + _hex(34, 12),
    "Shopify": "shpat_" + _hex(32, 13),
    "Linear": "lin_api_" + _mixed(40, 52),
    "Notion": "ntn_" + _mixed(46, 53),
    "Supabase": "sbp_" + _hex(40, 14),
    "Alibaba": "LTAI" + _mixed(20, 54),
    "age": "AGE-SECRET-KEY-1" + _mixed(58, 55).upper(),
    "JWT": _JWT,
    "JWE": _JWE,
    "Neptune": "eyJ" + _mixed(80, 56) + "==",
    "RSA key": _pem("RSA PRIVATE KEY"),
    "key": _pem("PRIVATE KEY"),
    "OpenSSH key": _pem("OPENSSH PRIVATE KEY"),
    "encrypted key": _pem("EC PRIVATE KEY").replace(
        "KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: A-1\n", 1
    ),
    "PGP key": _pem("PGP PRIVATE KEY BLOCK"),
}
"""Known by their look wherever they stand: kind to secret."""

# What follows is known by what stands beside it: kind to (text with {}, the secret).
_PLAIN = "tr0ub4dor-and-3"
BESIDE: Mapping[str, tuple[str, str]] = {
    "password": ("password={}", "hunter2hunter"),
    "password in words of YAML": ("password: {}", "correcthorse"),
    "password in JSON": ('{{"password": "{}"}}', "pa ss,w&ord1"),
    "password in JSON in a text": ('{{\\"password\\": \\"{}\\"}}', "pass7word1"),
    "password of Python": ("connect(password='{}', x=1)", "pa{}ss word2"),
    "passphrase": ("passphrase = {}", _PLAIN),
    "PGPASSWORD": ("PGPASSWORD={} psql", _PLAIN),
    "option": ("--token {} --verbose", _PLAIN),
    "option with =": ("--api-key={} -v", _PLAIN),
    "AWS secret key": ("aws_secret_access_key = {}", _mixed(40, 60)),
    "AWS session token": ("AWS_SESSION_TOKEN={}", _BASE64),
    "AWS signed address": ("https://b.s3.amazonaws.com/x.jpg?X-Amz-Signature={}&X-Amz-Date=1", _hex(64, 20)),
    "AWS credential of an address": ("https://h/x?X-Amz-Credential={}&y=1", _mixed(20, 61) + "%2F20261129%2Fus"),
    "AWS token of an address": ("https://h/x?X-Amz-Security-Token={}", _mixed(60, 62) + "%2F%3D"),
    "Google signed address": ("https://storage.googleapis.com/b/x?X-Goog-Signature={}", _hex(128, 21)),
    "GCP service account": ('"private_key": "-----BEGIN PRIVATE KEY-----\\n{}\\n-----END PRIVATE KEY-----\\n"', _mixed(64, 63)),
    "GCP private_key_id": ('"private_key_id": "{}"', _hex(40, 22)),
    "Azure account key": ("AccountName=x;AccountKey={};EndpointSuffix=y", _BASE64[:86] + "=="),
    "Azure shared access": ("Endpoint=sb://x/;SharedAccessKey={}", _BASE64[:43] + "="),
    "Azure SAS": ("https://a.blob.core.windows.net/c/x.jpg?sv=2024-11-04&sig={}&se=1", _mixed(30, 64) + "%2B" + _mixed(10, 65) + "%3D"),
    "basic auth in an address": ("https://alice:{}@host.org/x", _PLAIN),
    "basic auth with an at sign": ("https://alice:{}@host.org/x", "p@ss#w0rd"),
    "basic auth with a slash": ("postgres://alice:{}@host.org/db", "pa/ss/w0rd"),
    "token as the user of an address": ("https://{}@host.org/x.git", _mixed(24, 66)),
    "Sentry address": ("https://{}@o1.ingest.sentry.io/2", _hex(32, 23)),
    "bearer header": ("Authorization: Bearer {}", _mixed(24, 67)),
    "bearer alone": ("sent Bearer {}", _mixed(24, 68)),
    "basic header": ("Authorization: Basic {}", "YWxpY2U6aHVudGVyMg=="),
    "basic alone": ("sent Basic {}", "YWxpY2U6aHVudGVyMg=="),
    "digest header": ("Authorization: Digest response={}", _hex(32, 24)),
    "proxy header": ("Proxy-Authorization: Basic {}", "YWxpY2U6aHVudGVyMw=="),
    "key header": ("X-Api-Key: {}", _PLAIN),
    "token header": ("PRIVATE-TOKEN: {}", _PLAIN),
    "cookie": ("Cookie: lang=de; sid={}", _mixed(26, 69)),
    "set cookie": ("Set-Cookie: sid={}; HttpOnly", _mixed(26, 70)),
    "headers of Python": ("{{'Authorization': 'Bearer {}', 'Accept': '*/*'}}", _mixed(24, 71)),
    "query": ("https://h/v1?api_key={}&n=1", _PLAIN),
    "encoded query": ("https://h/login?next=%2Fx%3Faccess_token%3D{}", _mixed(24, 72)),
    "hex key": ("encryption_key={}", _hex(64, 25)),
    "hex key called key": ("key: {}", _hex(32, 26)),
    "base64 key": ("aes_key={}", _BASE64[:44]),
    "base64 key called key": ("key={}", _BASE64[:44]),
    "key of an address": ("https://h/x?key={}&n=1", _mixed(32, 73)),
    "W&B": ("WANDB_API_KEY={}", _hex(40, 27)),
    "Datadog": ("DD_API_KEY={}", _hex(32, 28)),
    "Cloudflare": ("CLOUDFLARE_API_TOKEN={}", _mixed(40, 74)),
    "npm registry": ("//registry.npmjs.org/:_authToken={}", _hex(36, 29)),
    "netrc": ("machine h login alice password {}", _PLAIN),
    "Slack webhook": ("https://hooks.slack.com/services/{}", "T0AB1/B0CD2/" + _mixed(24, 75)),
    "Discord webhook": ("https://discord.com/api/webhooks/{}", "123456789/" + _mixed(60, 76)),
    "client secret": ("client_secret={}", _PLAIN),
    "camel case": ("clientSecret: '{}'", _PLAIN),
    "exported": ("export MY_TOKEN={}", _PLAIN),
    "mapping of Hydra": ("hydra.job.env_set={{HF_TOKEN: {}}}", _PLAIN),
    "bytes of Python": ("token=b'{}'", _PLAIN),
    "connection string": ("Server=db;User Id=a;Password={};", _PLAIN),
    "environ of Python": ("os.environ['MY_SECRET'] = '{}'", _PLAIN),
}  # fmt: skip
"""Known by what stands beside them."""

ORDINARY = [
    "200cf36dee1b4d2f8a0c9b7e6f5a4d3c2b1a0f9e", "commit 200cf36dee1b4d2f8a0c9b7e6f5a4d3c2b1a0f9e",
    "sha256:0f1e2d3c4b5a69788796a5b4c3d2e1f00112233445566778899aabbccddeeff0", "git: 200cf36+changes",
    "123e4567-e89b-12d3-a456-426614174000", "id: 123e4567-e89b-12d3-a456-426614174000", "COCO_val2014_000000262148.jpg",
    "GPU-5a3f6c0e-1b2d-4c5e-8f90-abcdefabcdef", "images/val2014/COCO_val2014_000000262148.jpg#1a2b3c4d",
    "image_id: 262148", "question_id=262148003", "point_id: vision_tokens=1024", "cache_key=0f1e2d3c4b5a69788796a5b4",
    "hf_hub_download_with_retries", "npm_config_registry", "sk-learn-contrib-extras-and-more", "hf_transfer",
    "pneumonoultramicroscopicsilicovolcanoconiosis", "DefaultCPUAllocator: can't allocate memory",
    "Qwen2_5_VLForConditionalGeneration", "model.language_model.layers.27.self_attn.q_proj.weight",
    "vlmbench.models.anatomy.find:anatomy_table", "output tokens: 32", "max_new_tokens=32", "per token: 12.5 ms",
    "image_token: <image>", "eos_token='</s>'", "pad_token_id=32001", "image_token_index: 32000", "token: null",
    "hub_token=None", "trust_remote_code: false", "tokens/s", "one token: 3.2 ms", "ms per output token = 12.51",
    "unexpected token: a comma was expected", "Error parsing override 'a=b=c'", "the password is wrong",
    "password: must be set", "no authorization is needed", "Bearer authentication is used", "Basic Authentication",
    "basic configuration of the server", "forward pass: 12.5 ms", "pass: 100", "two passes", "sort_key: name",
    "key: value", "keys: a, b", "primary key=3", "public_key=0f1e2d3c4b5a69788796a5b4c3d2e1f0", "monkey=1", "key=sequence_length",
    "signature: (x, y)", "function signature=forward", "https://host:8000/v1/chat@2", "http://127.0.0.1:8000/v1",
    "https://cdn.org/npm/x@1.2.3/y.js", "s3://bucket/a/b.jpg", "hf://org/model", "mail alice@example.org",
    "hydra.launcher.setup=['module load gcc']", "python -m vlmbench -m experiment=smoke seed=1,2", "a: b: c=d",
    "num_vision_tokens", "first_token: 81.2 ms", "T_prefill=12.5, T_decode=33.1", "dtype=torch.bfloat16",
    "NVIDIA H200", "sess-2026-11-29-run-of-the-day", "MIIB is no key", "AKI patients", "eyJ", "ghp_", "-----BEGIN CERTIFICATE-----",
    "HF_TOKEN=${oc.env:HF_TOKEN}", "export HF_TOKEN=$OTHER", "runtime.api_key_env=OPENAI_API_KEY",
    "the environment variable 'HF_TOKEN' (runtime.api_key_env) is not set", "1//2", "sl.", "pat-a-cake",
    "task: profile", "ask-2026: who", "desk-2026-long-name-of-a-run-1", "risk-adjusted-2026-value-of-a-run",
]  # fmt: skip
"""Texts of runs, that no redaction may change."""
