#include <fmt/format.h>
#include <gtest/gtest.h>

#include "runtime/base/random.h"
#include "runtime/data/text_extract.h"
#include "runtime/data/troff_escapes.h"
#include "runtime/data/utf8.h"

namespace perdure {
namespace {

TEST(TroffToText, ReadsAManualPage) {
  EXPECT_EQ(TroffToText(R"(.\" A comment
'\" t
.TH LS 1 "Septembre 2022" "GNU coreutils 9.1"
.SH NOM
ls \- Afficher le contenu de r\('epertoires
.SH
SYNOPSIS
\fBls\fP [\fI\,OPTION\/\fP]... [\fIFICHIER\fR]\&.
.SH DESCRIPTION
Une ligne
qui continue.  Les options
.BR \-cftuvSUX ,
.B \-\-sort
et
.IR "deux mots" " (" 3 ).
.PP
Second paragraphe\\ avec \(lqguillemets\(rq\ ; C:\eDIR.
.TP
.BR \-a ", " \-\-all
inclure tout
.TP 4
\fB\-b\fP
.\" not the tag's end
octal
.IP \(bu 2
puce
.IP "\fBEFAULT\fR" 4
mauvaise adresse
.nf
    int x;  /* two  spaces */

    int y;
.fi
apr\[e aigu]es
.UR https://example.org/
le site
.UE .
)"),
            R"(LS(1)

NOM
ls - Afficher le contenu de répertoires

SYNOPSIS
ls [OPTION]... [FICHIER].

DESCRIPTION
Une ligne qui continue. Les options -cftuvSUX, --sort et deux mots (3).

Second paragraphe\ avec “guillemets” ; C:\DIR.

-a, --all
inclure tout

-b
octal

• puce

EFAULT
mauvaise adresse
    int x;  /* two  spaces */

    int y;
apres le site <https://example.org/>.
)");
}

TEST(TroffToText, ReadsTables) {
  EXPECT_EQ(TroffToText(R"(.TH T 1
.TS
tab(@) allbox;
lb lb
l l.
Name@Value
_
a@1
b@T{
two
words
T}
.T&
l.
c@3
.TE
.TS
l l.
x	y
.TE
after
)"),
            "T(1)\n\nName Value\na 1\nb two words\nc 3\n\nx y\n\nafter\n");
}

TEST(TroffToText, FollowsConditionsAndDefinitions) {
  EXPECT_EQ(TroffToText(R"(.TH T 1
.de Zz
ignored \\$1
..
.ig
also ignored
..
.ds Nm perdure
.ds Quote "\(lq\*(Nm\(rq
.if n typewriter
.if t typeset
.if !t not typeset
.ie n \{\
in block
.br
\}
.el \{\
never
.\}
.ie \n(.g .ds Aq \(aq
.el .ds Aq '
it\*(Aqs \*[Quote]
.if 'a'a' equal
.if !'po4a'hide' .BR shown (1)
.if \nF>0 hidden
.if t \{ never
never
.if n \{ never \}
\}
.TP
.if n tag
body
.Foo bar "two words"
.ft CW
.OP \-x file
.ie t no
.el yes
.EQ
x sup 2
.EN
end
)"),
            "T(1)\n\ntypewriter not typeset in block\nit's “perdure” equal shown(1)\n\ntag\nbody "
            "bar two words [-x file] yes end\n");
}

TEST(TroffToText, ReadsMdoc) {
  EXPECT_EQ(TroffToText(R"(.Dd May 1, 2020
.Dt KILL 1
.Os
.Sh NAME
.Nm kill
.Nd terminate a process
.Sh SYNOPSIS
.Nm
.Op Fl s Ar signal_name
.Ar pid ...
.Sh DESCRIPTION
The
.Nm
utility sends
.Dq signals ,
see
.Xr signal 3 .
.Bl -tag -width x
.It Fl l Op Ar exit_status
List names
.Pq or one .
.El
.Bd -literal
kill  -9 1
.Ed
.Pp
Last
.Em word Ns s .
)"),
            R"(KILL(1)

NAME
kill - terminate a process

SYNOPSIS
kill [-s signal_name] pid ...

DESCRIPTION
The kill utility sends “signals”, see signal(3).

-l [exit_status]
List names (or one).

kill  -9 1

Last words.
)");
}

TEST(TroffUnescape, KnowsTheSequences) {
  const TroffStrings strings{{"xx", "own"}, {"loop", "\\*[loop]x"}};
  const auto text = [&](std::string_view escaped) { return TroffUnescape(escaped, strings); };
  EXPECT_EQ(text(R"(\fBa\fP\f(CWb\f[R]\s-1c\s0\s+2d\s(12e\s12f)"), "abcdef");
  EXPECT_EQ(text(R"(\(co\(em\(bu\[lq]\[u20AC]\[u1F642]\(:u\(^o\(,c\(~n\(vS\(oa\(ss)"),
            "©—•“€🙂üôçñŠåß");
  EXPECT_EQ(text(R"(\-\ \~\0\e\&\|\^\%\:\)x)"), "-   \\x");
  EXPECT_EQ(text(R"(\*(xx \*[xx] \*(Aq \*R \*(zz \*[zz])"), "own own ' ®  ");
  EXPECT_EQ(text(R"(\h'1m'a\v'-2p'b\w'text'uc\N'233'd\n(.ge\nxf\n+(xxg\kzh)"), "abucédefgh");
  EXPECT_EQ(text(R"(a \" comment)"), "a ");
  EXPECT_EQ(text(R"(\(zz\[nothing]\[u]\[u110000]\[u0007])"), "\uFFFD");
  EXPECT_EQ(text(R"(\`\'\.\_\q)"), "`´._q");
  EXPECT_EQ(text("\\"), "");
  EXPECT_EQ(text("\\("), "");
  EXPECT_EQ(text("\\[never closed"), "");
  EXPECT_EQ(text("\\h'never closed"), "");
  EXPECT_LT(text("\\*[loop]").size(), 10u);
}

TEST(TroffToText, SurvivesHostilePages) {
  std::string nested = ".TH T 1\n";
  for (int i = 0; i < 100000; ++i) nested += ".if n ";
  EXPECT_EQ(TroffToText(nested + "deep\n"), "T(1)\n");
  std::string doubling = ".TH T 1\n.ds a xxxxxxxxxx\n";
  for (char c = 'a'; c < 'z'; ++c) {
    doubling += fmt::format(".ds {} ", static_cast<char>(c + 1));
    for (int i = 0; i < 10; ++i) doubling += fmt::format("\\*{}", c);
    doubling += "\n";
  }
  EXPECT_LT(TroffToText(doubling + "\\*z\n").size(), 200000u);
  for (const char* page : {".TH", ".TH T 1\n.de", ".TH T 1\n.TS\n", ".TH T 1\n.TS\n;",
                           ".TH T 1\n.el x", ".TH T 1\n.if", ".TH T 1\n.if '", ".TH T 1\n.if 'a",
                           ".TH T 1\n.ds", ".TH T 1\n.BR \"", "'", ".", "..", "\\", ".TH T 1\n.UE",
                           ".TH T 1\n\\}\\}\\}", ".Dd\n.Op", ".Dd\n.Xr", ".Dd\n.Fl Fl Fl"})
    EXPECT_EQ(ValidUtf8Prefix(TroffToText(page)), TroffToText(page).size()) << page;
}

TEST(TroffToText, SurvivesAnyLine) {
  constexpr std::string_view kPieces[] = {
      ".TH ",  ".TS\n", ".TE\n", ".if ",  ".ie ", ".el ", "\\{", "\\}",  ".de ",
      "..",    "\n",    "\n",    "\n.",   "'",    "\"",   "\\",  "\\*(", "\\f",
      "n ",    "t ",    ".BR ",  ".Dd\n", ".Op ", "T{",   "T}",  "\t",   "x",
      ".nf\n", ".fi\n", ".TP\n", ".SH ",  "é",    ";",    ".UR "};
  for (uint64_t i = 0; i < 3000; ++i) {
    std::string page = ".TH T 1\n";
    for (uint64_t k = 0; k < 40; ++k)
      page += kPieces[RandomBits(3, RandomPurpose::kTest, i, k)[0] % std::size(kPieces)];
    const std::string text = TroffToText(page);
    EXPECT_EQ(text.find("\n\n\n"), std::string::npos);
    EXPECT_TRUE(text.empty() || (text.ends_with('\n') && text[0] != '\n')) << page;
  }
}

}  // namespace
}  // namespace perdure
