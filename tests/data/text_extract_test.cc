#include "runtime/data/text_extract.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <chrono>

#include "runtime/data/gunzip.h"
#include "runtime/data/utf8.h"
#include "tests/data/test_files.h"

namespace perdure {
namespace {

std::string Gzip(std::string_view text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 9, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

SkipReason SkipOf(std::string_view bytes) { return ExtractText(bytes).skip; }
std::string TextOf(std::string_view bytes) { return ExtractText(bytes).text; }

TEST(Utf8, IsStrict) {
  for (const char* good :
       {"a", "é", "€", "🙂", "\u07FF", "\u0800", "\uD7FF", "\uFFFF", "\U0010FFFF"}) {
    EXPECT_EQ(Utf8Length(good), std::string(good).size()) << good;
    EXPECT_EQ(RepairUtf8(good), good);
  }
  for (const char* bad :
       {"\x80", "\xbf", "\xc0\xaf", "\xc1\xbf", "\xc3", "\xe0\x80\xaf", "\xe0\x9f\xbf",
        "\xed\xa0\x80", "\xed\xbf\xbf", "\xe2\x82", "\xf0\x80\x80\xaf", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xff", "\xe2\x28\xa1"})
    EXPECT_EQ(Utf8Length(bad), 0u);
  EXPECT_EQ(ValidUtf8Prefix("ab\xc3\xa9\xff"
                            "c"),
            4u);
  EXPECT_EQ(RepairUtf8("a\xff\xc3\xa9\xe2\x82"), "a\uFFFDé\uFFFD\uFFFD");
  std::string made;
  for (const uint32_t code : {0x41u, 0xE9u, 0x20ACu, 0x1F642u, 0xD800u, 0x110000u})
    AppendUtf8(code, &made);
  EXPECT_EQ(made, "Aé€🙂\uFFFD\uFFFD");
}

TEST(Gunzip, UnpacksMembersAndPadding) {
  EXPECT_EQ(*Gunzip(Gzip("hello"), 100), "hello");
  EXPECT_EQ(*Gunzip(Gzip(""), 100), "");
  EXPECT_EQ(*Gunzip(Gzip("one ") + Gzip("two"), 100), "one two");
  EXPECT_EQ(*Gunzip(Gzip("padded") + std::string(512, '\0'), 100), "padded");
  const std::string large(1'000'000, 'x');
  EXPECT_EQ(*Gunzip(Gzip(large), large.size()), large);
}

TEST(Gunzip, RefusesWhatIsCutDamagedOrTooLarge) {
  const std::string whole = Gzip("some text that is long enough to be cut into pieces");
  for (size_t bytes = 2; bytes < whole.size(); ++bytes)
    ExpectError(Gunzip(whole.substr(0, bytes), 1000).status(), absl::StatusCode::kDataLoss,
                {"gzip"});
  std::string damaged = whole;
  damaged[whole.size() - 6] ^= 1;  // Its checksum.
  ExpectError(Gunzip(damaged, 1000).status(), absl::StatusCode::kDataLoss, {"damaged"});
  ExpectError(Gunzip(whole + "trailing", 1000).status(), absl::StatusCode::kDataLoss,
              {"8 other bytes"});
  ExpectError(Gunzip(Gzip(std::string(10'000'000, 'x')), 1'000'000).status(),
              absl::StatusCode::kResourceExhausted, {"1000000"});
}

TEST(ExtractText, KeepsPlainText) {
  EXPECT_EQ(TextOf("a line\n  indented\n\n\n\nlast"), "a line\n  indented\n\n\n\nlast\n");
  EXPECT_EQ(TextOf("\xEF\xBB\xBFwith a mark\r\nand CRLF\r\n\r\n"), "with a mark\nand CRLF\n");
  EXPECT_EQ(TextOf("page\fbreak"), "pagebreak\n");
  EXPECT_EQ(TextOf(Gzip("packed")), "packed\n");
  EXPECT_EQ(TextOf("a < b and <i>no page</i>"), "a < b and <i>no page</i>\n");
  EXPECT_EQ(TextOf(".dotfile is no manual page\n"), ".dotfile is no manual page\n");
}

TEST(ExtractText, SaysWhyItSkips) {
  EXPECT_EQ(SkipOf(""), SkipReason::kEmpty);
  EXPECT_EQ(SkipOf(" \n\t\n"), SkipReason::kEmpty);
  EXPECT_EQ(SkipOf("<html><body><img src='x'></body></html>"), SkipReason::kEmpty);
  EXPECT_EQ(SkipOf(".so man3/other.3\n"), SkipReason::kEmpty);
  EXPECT_EQ(SkipOf(std::string_view("a\0b", 3)), SkipReason::kBinary);
  EXPECT_EQ(SkipOf("\x01\x02\x03\x04 some"), SkipReason::kBinary);
  EXPECT_EQ(SkipOf("caf\xe9 in latin-1"), SkipReason::kNotUtf8);
  EXPECT_EQ(SkipOf(Gzip("caf\xe9")), SkipReason::kNotUtf8);
  EXPECT_EQ(SkipOf("\x1f\x8b"
                   "no gzip"),
            SkipReason::kDamagedGzip);
  EXPECT_EQ(SkipOf(Gzip("cut off").substr(0, 20)), SkipReason::kDamagedGzip);
  EXPECT_EQ(SkipOf(std::string_view("\x89PNG\r\n\x1a\n\0\0\0", 11)), SkipReason::kBinary);
}

TEST(ExtractText, KnowsNamesWithoutText) {
  for (const char* name : {"copyright", "changelog.Debian.gz", "changelog", "ChangeLog", ".git",
                           "a.png", "B.JPG", "c.pdf", "d.svg", "x.bin", "x.idx"})
    EXPECT_TRUE(IsSkippedName(name)) << name;
  for (const char* name : {"ls.1.gz", "index.html", "README", "notes.txt", "main.c", "page.page"})
    EXPECT_FALSE(IsSkippedName(name)) << name;
}

TEST(MarkupToText, KeepsTheTextOfAPage) {
  EXPECT_EQ(TextOf(R"(<!DOCTYPE html>
<html><head><title>Not text</title><style>p { color: red }</style></head>
<body><nav><ul><li>Menu</li></ul></nav><div class="navheader"><div>Next</div>Up</div>
<h1>Caf&eacute; &amp; th&#233;&#x2019;s</h1>
<p>First   <b>bold</b>
line.</p><!-- a <p>comment</p> -->
<ul><li>one</li><li>two</li></ul>
<pre>int  main() {
    return 0;   
}</pre>
<script>if (a < b) document.write("<p>no</p>");</script>
<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>
<p>Keys: <span class="key MAC">Command</span><span>Ctrl</span>+C,
1 < 2, R&D, &unknown; x&lt;y<br>end</p>
<footer>Imprint</footer></body></html>)"),
            R"(Café & thé’s

First bold line.

one
two

int  main() {
    return 0;
}

a b
c d

Keys: Ctrl+C, 1 < 2, R&D, &unknown; x<y
end
)");
}

TEST(MarkupToText, ReadsMallard) {
  EXPECT_EQ(TextOf(R"(<?xml version="1.0" encoding="utf-8"?>
<page xmlns="http://projectmallard.org/1.0/" type="topic" id="x">
  <info><link type="guide" xref="y"/><desc>Not text.</desc></info>
  <title>Désactiver</title>
  <p>Appuyez sur <key>Entrée</key><media type="image" src="a.png"/>.</p>
  <steps><item><p>Un <gui style="menu">Fichier</gui></p></item><item><p>Deux</p></item></steps>
  <screen>ls -l</screen>
  <x:p xmlns:x="u"><![CDATA[a < b]]></x:p>
</page>)"),
            "Désactiver\n\nAppuyez sur Entrée.\n\nUn Fichier\n\nDeux\n\nls -l\n\na < b\n");
}

TEST(MarkupToText, ReadsHostilePages) {
  EXPECT_EQ(MarkupToText("<p>text <!-- never closed <p>more"), "text\n");
  EXPECT_EQ(MarkupToText("<p>text<script>never closed"), "text\n");
  EXPECT_EQ(MarkupToText("<p>a<script>x</SCRIPT\n>b"), "ab\n");
  EXPECT_EQ(MarkupToText("<p title=\"<b>quoted > sign</b>\">x</p>"), "x\n");
  EXPECT_EQ(MarkupToText("<p>a <b unclosed"), "a <b unclosed\n");
  EXPECT_EQ(MarkupToText("a <\" b </> <1> <"), "a <\" b </> <1> <\n");
  EXPECT_EQ(MarkupToText("<head><title>x<body>kept</body>"), "kept\n");
  EXPECT_EQ(MarkupToText("<nav><nav>a</nav>b</nav>c<nav/>d"), "cd\n");
  EXPECT_EQ(MarkupToText("</pre></pre><p>a  b</p>"), "a b\n");
  EXPECT_EQ(MarkupToText("&#0;&#xD800;&#x110000;&#99999999999;&#128;&#;&#x;&amp"),
            "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD&#;&#x;&amp\n");
  EXPECT_EQ(MarkupToText("&thetasym;&apos;&AMP;&nbsp;x"), "ϑ'&AMP;\u00A0x\n");
}

TEST(MarkupToText, TakesTimeInProportionToThePage) {
  const auto begin = std::chrono::steady_clock::now();
  for (const std::string_view piece :
       {"<a \"", "<!-", "&", "<p>", "</", "<script>", "<nav>", "<a href='"}) {
    std::string page;
    while (page.size() < 1'000'000) page += piece;
    EXPECT_LE(MarkupToText(page).size(), page.size() + 2);
  }
  // A look at the rest for every '<' would take minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
}

}  // namespace
}  // namespace perdure
