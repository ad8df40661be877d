// The house rules that a machine can check, each a function from files to problems.
// tests/tidy_test.cc runs every rule twice: over the source tree, where it must find nothing, and
// over a made-up violation, where it must find it.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace perdure {

struct SourceFile {
  std::string path;  // Relative to the root: "runtime/base/atoms.h".
  std::string text;
  std::string code;  // C++ and CUDA only: the text with comments and literals blanked out.
};
using Files = std::vector<SourceFile>;
using Problems = std::vector<std::string>;  // "path:line: what, and what to do".
using Words = std::vector<std::string_view>;

inline constexpr std::string_view kTopFolders[] = {"runtime", "model",      "kernels", "ckpt",
                                                   "launch",  "monitoring", "tests",   "docs"};
inline constexpr size_t kFileLinesMax = 700;
inline constexpr size_t kColumnsMax = 100;

SourceFile MakeFile(const std::string& path, const std::string& text);
// `text` with comments, strings and characters replaced by blanks, line by line as it was.
std::string BlankOut(const std::string& text);
// "kernels" of "kernels/cpu/rope.cc", "runtime/comm" of "runtime/comm/group.h".
std::string PartOf(const std::string& path);

// Which of our folders a folder may include besides itself and runtime/base.
const std::map<std::string, Words>& FoldersBelow();

struct Ban {
  Words words;
  Words where;   // Prefixes of paths; empty: everywhere.
  Words except;  // Prefixes of paths.
  std::string_view why;
};
const std::vector<Ban>& Bans();

Problems CheckTopLevel(const std::vector<std::string>& names);
Problems CheckIncludeDirection(const Files& files);
Problems CheckLibraryHeaders(const Files& files);
Problems CheckSourcesListed(const Files& files);
Problems CheckBans(const Files& files);
Problems CheckHeadersAndScripts(const Files& files);
Problems CheckSizes(const Files& files);
Problems CheckArchitectureNamesFolders(const Files& files);
// Relative links of pages lead to files; `exists` is asked with a path from the root.
Problems CheckLinks(const Files& files, const std::function<bool(const std::string&)>& exists);

}  // namespace perdure
