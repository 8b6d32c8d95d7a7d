"""What the secrets of providers look like: prefixes, and forms that have none. Standard library only."""

from __future__ import annotations

import re

# Followed by letters and digits only, so that ``hf_hub_download`` is none.
_PLAIN = (
    "hf_ api_org_ npm_ r8_ gsk_ ghp_ gho_ ghu_ ghs_ ghr_ rubygems_ lin_api_ sbp_ glsa_ dop_v1_ doo_v1_ dor_v1_ shpat_ "
    "shpss_ shpca_ shppa_ sk_live_ sk_test_ rk_live_ rk_test_ pk_live_ pk_test_ whsec_ ntn_ nfp_ pul- bkua_ pnu_ pnb_ "
    "rpa_ wandb_v1_ AGE-SECRET-KEY-1 NRAK- LTAI AKID tskey-auth- phc_ phx_ sgp_"
)
# Followed by letters, digits, dashes and underscores, a digit or capital early among them.
_DASHED = (
    "github_pat_ glpat- gldt- glrt- glcbt- glptt- glft- glsoat- glimt- glagent- nvapi- pypi- xai- dckr_pat_ dckr_oat_ "
    "xoxa- xoxb- xoxe- xoxo- xoxp- xoxr- xoxs- xapp- AIza AQ. ya29. sk- GOCSPX- tgp_v1_ pplx- figd_ hvs. hvb. "
    "hvr. lsv2_pt_ lsv2_sk_ pcsk_ PMAK- CFPAT- sntrys_ sntryu_ ATATT3 ATCTT3 ATBB sq0atp- sq0csp- sl. dp.pt. dp.st. "
    "dp.ct. glc_ pscale_tkn_ pscale_pw_ HRKU- CCIPAT_ dt0c01."
)
_OTHERS = r"""
    (?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{12,}
  | 1//?0[A-Za-z0-9_-]{30,}
  | SK[0-9a-f]{32} | dapi[0-9a-f]{32} | key-[0-9a-f]{32} | [0-9a-f]{32}-us[0-9]{1,2} | secret_[A-Za-z0-9]{32,}
  | SG\.[A-Za-z0-9_-]{16,64}\.[A-Za-z0-9_-]{16,}
  | eyJ[A-Za-z0-9_-]{8,4096}(?:\.[A-Za-z0-9_-]*){1,4} | eyJ[A-Za-z0-9_+/=-]{40,}
  | [A-Za-z0-9_~-]{3}[0-9]Q~[A-Za-z0-9_.~-]{31,34}
  | [A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}
  | [0-9]{8,10}:AA[A-Za-z0-9_-]{33}
  | [MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,}
"""
# A word begins here; a line break written as ``\n`` and an encoded ``%20`` end the word before as well.
_BEGINS = r"(?:(?<![A-Za-z0-9])|(?<=\\[nrt])|(?<=%[0-9A-Fa-f]{2}))"


def _any(prefixes: str) -> str:
    return "|".join(map(re.escape, sorted(prefixes.split(), key=len, reverse=True)))


LONG_WORD = re.compile(r"""[^\s'"<>,;(){}\[\]]{16,}""")
"""What may hold one of the forms; short words are not looked at further."""
FORM = re.compile(
    rf"""{_BEGINS}(?: (?:{_any(_PLAIN)})[A-Za-z0-9]{{16,}}
      | (?:{_any(_DASHED)})(?=[a-z_-]{{0,24}}[A-Z0-9])[A-Za-z0-9_=-]{{16,}}
      | {_OTHERS} )+""",
    re.VERBOSE,
)
BEHIND: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (sign, re.compile(pattern, re.VERBOSE))
    for sign, pattern in (
        ("hooks.slack.com/", r"(?<=hooks\.slack\.com/services/)[A-Za-z0-9/_-]{10,}"),
        ("/webhooks/", r"(?<=/api/webhooks/)[A-Za-z0-9/_-]{20,}"),
        ("earer ", r"(?<=\b[Bb]earer\ )(?![A-Z]?[a-z]{1,40}(?![A-Za-z0-9+/=_]))[A-Za-z0-9+/._~=-]{8,}"),
        ("asic ", r"(?<=\b[Bb]asic\ )(?![A-Z]?[a-z]{1,40}(?![A-Za-z0-9+/=_]))[A-Za-z0-9+/._=-]{8,}"),
        # of a web address (``://`` is ``:/`` in a path): user:password, with slashes in it or not; then any other user
        (":/", r"""(?:(?<=://)|(?<=:/)(?!/))[^\s/:@'"<>*]{0,64}:(?![0-9]{1,5}[/?\#]|\$\{oc\.env:)[^\s'"<>@]{1,128}(?=@)"""),
        (":/", r"""(?:(?<=://)|(?<=:/)(?!/))(?!\*\*\*@)[^\s/'"<>${}]{1,256}(?=@)"""),
        (" password ", r"\blogin\ [^\s]{1,200}\ password\ [^\s\\'\"]{3,}"),  # of ~/.netrc
        ("PRIVATE KEY", r"""-----BEGIN\ [A-Z0-9\ ]{0,30}PRIVATE\ KEY(?:\ BLOCK)?-----(?:(?!-----)[\s\S]){0,20000}
            (?:-----END\ [A-Z0-9\ ]{0,30}PRIVATE\ KEY(?:\ BLOCK)?-----)?"""),
    )
)  # fmt: skip
"""Forms that are known by what stands before them; each is looked for only where its sign stands in the text."""
