// The source tree obeys the house rules of tidy_rules.h, and each rule catches its violation.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "tests/tidy_rules.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;

// CMakeLists.txt, README.md and all that lies in kTopFolders, sorted by path.
const Files& Tree() {
  static const Files files = [] {
    const fs::path root = PERDURE_SOURCE_DIR;
    std::vector<fs::path> paths = {root / "CMakeLists.txt", root / "README.md"};
    for (const std::string_view folder : kTopFolders)
      for (const auto& entry : fs::recursive_directory_iterator(root / folder))
        if (entry.is_regular_file() && entry.path().extension() != ".pyc")
          paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    Files result;
    for (const fs::path& path : paths) {
      std::ifstream stream(path, std::ios::binary);
      const std::string text((std::istreambuf_iterator<char>(stream)), {});
      EXPECT_TRUE(stream.good() || stream.eof()) << path;
      result.push_back(MakeFile(fs::relative(path, root).generic_string(), text));
    }
    return result;
  }();
  return files;
}

// ---- The tree obeys them ------------------------------------------------------------------------

void ExpectNone(const Problems& problems) {
  for (const std::string& problem : problems) ADD_FAILURE() << problem;
}

TEST(Tidy, TopLevel) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(PERDURE_SOURCE_DIR))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  ExpectNone(CheckTopLevel(names));
}
TEST(Tidy, IncludesPointOneWay) { ExpectNone(CheckIncludeDirection(Tree())); }
TEST(Tidy, LibrariesAreNamedByOneFamily) { ExpectNone(CheckLibraryHeaders(Tree())); }
TEST(Tidy, SourcesAndTestsAreListed) { ExpectNone(CheckSourcesListed(Tree())); }
TEST(Tidy, Bans) { ExpectNone(CheckBans(Tree())); }
TEST(Tidy, HeadersAndScripts) { ExpectNone(CheckHeadersAndScripts(Tree())); }
TEST(Tidy, Sizes) { ExpectNone(CheckSizes(Tree())); }
TEST(Tidy, ArchitectureNamesEveryFolder) { ExpectNone(CheckArchitectureNamesFolders(Tree())); }
TEST(Tidy, LinksLeadSomewhere) {
  ExpectNone(CheckLinks(Tree(), [](const std::string& target) {
    return fs::exists(fs::path(PERDURE_SOURCE_DIR) / target);
  }));
}
TEST(Tidy, ScriptsPassShellcheck) {
  if (std::system("command -v shellcheck >/dev/null") != 0)
    GTEST_SKIP() << "shellcheck is not installed here: launch/install_packages.sh tests";
  // Shown to find something: an unquoted variable.
  EXPECT_NE(std::system("printf 'rm $1\n' | shellcheck -s bash - >/dev/null"), 0);
  int scripts = 0;
  for (const SourceFile& file : Tree())
    if (file.path.ends_with(".sh")) {
      ++scripts;
      const std::string command = "shellcheck '" PERDURE_SOURCE_DIR "/" + file.path + "' >&2";
      EXPECT_EQ(std::system(command.c_str()), 0) << file.path;
    }
  EXPECT_GT(scripts, 0);
}
TEST(Tidy, TheTreeIsReadWhole) {
  std::set<std::string> parts;
  for (const SourceFile& file : Tree())
    if (file.path.ends_with(".cc")) parts.insert(PartOf(file.path));
  EXPECT_TRUE(std::any_of(Tree().begin(), Tree().end(), [](const SourceFile& file) {
    return file.path.ends_with(".cu") && !file.code.empty();
  }));
  for (const auto& [part, below] : FoldersBelow()) EXPECT_TRUE(parts.contains(part)) << part;
}

// ---- Each rule catches its violation ------------------------------------------------------------

void ExpectOne(const Problems& problems, const std::string& start) {
  ASSERT_EQ(problems.size(), 1U) << start << (problems.empty() ? "" : ": " + problems.front());
  EXPECT_TRUE(problems.front().starts_with(start)) << problems.front();
}

TEST(TidyRules, BlankOutKeepsCodeAndLines) {
  EXPECT_EQ(BlankOut("a /* throw\n */ b // c\nd"), "a         \n    b     \nd");
  EXPECT_EQ(BlankOut("f(\"x\\\"y\", 'q', 1'000);"), "f(\"    \", ' ', 1'000);");
  EXPECT_EQ(BlankOut("R\"(a\nb)\" + c"), "R\"  \n  \" + c");
  EXPECT_EQ(BlankOut("\"open\nnext"), "\"    \nnext");
}

TEST(TidyRules, TopLevel) {
  ExpectOne(CheckTopLevel({".git", "build-x", "docs", "a.out"}), "a.out");
}

TEST(TidyRules, IncludeDirection) {
  const std::string up = "#include \"runtime/train/mesh.h\"\n#include \"runtime/base/check.h\"\n";
  ExpectOne(CheckIncludeDirection({MakeFile("model/a.cc", up)}), "model/a.cc:1: ");
  ExpectOne(CheckIncludeDirection({MakeFile("runtime/comm/a.cc", up)}), "runtime/comm/a.cc:1: ");
  ExpectOne(CheckIncludeDirection({MakeFile("kernels/cpu/a.cc", "#include \"tests/a.h\"\n")}),
            "kernels/cpu/a.cc:1: ");
  ExpectOne(CheckIncludeDirection({MakeFile("extra/a.cc", "")}), "extra/a.cc: ");
  const std::string convert = "#include \"ckpt/convert/a.h\"\n#include \"ckpt/b.h\"\n";
  ExpectOne(CheckIncludeDirection({MakeFile("ckpt/a.cc", convert)}), "ckpt/a.cc:1: ");
  ExpectNone(CheckIncludeDirection({MakeFile("ckpt/convert/a.cc", convert)}));
  ExpectNone(CheckIncludeDirection({MakeFile("launch/a.cc", up), MakeFile("tests/a.cc", up)}));
}

TEST(TidyRules, LibraryHeaders) {
  const auto check = [](const char* path, const char* header) {
    return CheckLibraryHeaders({MakeFile(path, "#include <" + std::string(header) + ">\n")});
  };
  ExpectOne(check("ckpt/manifest.cc", "hdf5.h"), "ckpt/manifest.cc:1: <hdf5.h>");
  ExpectOne(check("runtime/comm/group.cc", "ucp/api/ucp.h"), "runtime/comm/group.cc:1: ");
  ExpectOne(check("model/block.cc", "sys/mman.h"), "model/block.cc:1: ");
  ExpectOne(check("runtime/data/a.cc", "nlohmann/json.hpp"), "runtime/data/a.cc:1: ");
  ExpectOne(check("launch/a.cc", "boost/any.hpp"), "launch/a.cc:1: ");
  ExpectOne(check("kernels/cpu/matmul.cc", "cublasLt.h"), "kernels/cpu/matmul.cc:1: ");
  ExpectOne(check("runtime/comm/group.cc", "nccl.h"), "runtime/comm/group.cc:1: ");
  ExpectOne(check("kernels/cuda/a.cu", "nccl.h"), "kernels/cuda/a.cu:1: ");
  ExpectOne(check("kernels/cuda/a.cuh", "thrust/sort.h"), "kernels/cuda/a.cuh:1: ");
  ExpectNone(check("kernels/cuda/matmul.cc", "cublasLt.h"));
  ExpectNone(check("kernels/cuda/a.cu", "cub/device/device_radix_sort.cuh"));
  ExpectNone(check("runtime/comm/nccl_group.cc", "cuda_runtime_api.h"));
  ExpectNone(check("ckpt/store_hdf5.cc", "hdf5.h"));
  ExpectNone(check("kernels/cpu/cpu_ops.cc", "sys/mman.h"));
  ExpectNone(check("model/block.cc", "vector"));
}

TEST(TidyRules, SourcesListed) {
  const SourceFile top =
      MakeFile("CMakeLists.txt", "foreach(p kernels)\nadd_subdirectory(tests)\n");
  const SourceFile tests = MakeFile("tests/CMakeLists.txt", "foreach(part a)\n");
  const auto check = [&](const char* kernels, const char* a, const char* source) {
    return CheckSourcesListed({top, tests, MakeFile("kernels/CMakeLists.txt", kernels),
                               MakeFile("tests/a/CMakeLists.txt", a), MakeFile(source, "")});
  };
  ExpectOne(check("add_library(k cpu/x.cc)", "", "kernels/cpu/y.cc"),
            "kernels/cpu/y.cc: not listed");
  ExpectOne(check("add_library(k # cpu/y.cc\n)", "", "kernels/cpu/y.cc"), "kernels/cpu/y.cc: ");
  ExpectNone(check("add_library(k cpu/x.cc)", "", "kernels/cpu/x.cc"));
  ExpectOne(check("add_library(k cuda/x.cu)", "", "kernels/cuda/y.cu"),
            "kernels/cuda/y.cu: not listed");
  ExpectNone(check("add_library(k cuda/x.cu)", "", "kernels/cuda/x.cu"));
  ExpectOne(check("", "add_executable(u u_test.cc)", "tests/a/u_test.cc"),
            "tests/a/u_test.cc: not in");
  ExpectNone(
      check("", "foreach(n u v)\nperdure_test(${n} SOURCES ${n}_test.cc)", "tests/a/v_test.cc"));
  ExpectOne(check("", "add_test(NAME m COMMAND check.sh m.pml)", "tests/a/n.pml"),
            "tests/a/n.pml: not listed");
  ExpectNone(
      check("", "foreach(m n)\nadd_test(NAME ${m} COMMAND check.sh ${m}.pml)", "tests/a/n.pml"));
  ExpectOne(check("file(GLOB x *.cc)", "", "docs/a.md"), "kernels/CMakeLists.txt: list sources");
  ExpectOne(check("f(-Ofast)", "", "docs/a.md"), "kernels/CMakeLists.txt: -Ofast");
  ExpectOne(CheckSourcesListed({top, tests, MakeFile("tests/b/CMakeLists.txt", "")}), "tests/b: ");
}

TEST(TidyRules, EveryBannedWordIsFound) {
  for (const Ban& ban : Bans()) {
    const std::string folder(ban.where.empty() ? "runtime/data/" : ban.where.front());
    for (const std::string_view word : ban.words) {
      const std::string use = "\n" + std::string(word) + (word.ends_with('(') ? ");\n" : " x;\n");
      const Problems problems = CheckBans({MakeFile(folder + "a.cc", use)});
      EXPECT_FALSE(problems.empty()) << word;
      ExpectNone(CheckBans({MakeFile(folder + "a.cc", "// " + std::string(word) + ")\n")}));
      if (!ban.except.empty())
        ExpectNone(CheckBans({MakeFile(std::string(ban.except.back()) + "a.cc", use)}));
    }
  }
  ExpectNone(
      CheckBans({MakeFile("model/a.cc", "static_assert(x); snprintf(y); rethrow; my_rand(1);")}));
}

TEST(TidyRules, UnfinishedWork) {
  ExpectOne(CheckBans({MakeFile("a.py", std::string("# TO") + "DO: later\n")}), "a.py:1: ");
  ExpectNone(CheckBans({MakeFile("a.py", "# TODOS, METHOD\n")}));
}

TEST(TidyRules, HeadersAndScripts) {
  const auto check = [](const char* path, const char* text) {
    return CheckHeadersAndScripts({MakeFile(path, text)});
  };
  ExpectNone(check("a.h", "// A.\n#pragma once\nint a;\n"));
  ExpectOne(check("a.h", "// A.\nint a;\n"), "a.h: a header has #pragma once");
  ExpectOne(check("a.h", "#pragma once\nint a;\n"), "a.h: a header opens");
  ExpectOne(check("a.h", "// A.\n#pragma once\nusing namespace std;\n"), "a.h: no using");
  ExpectOne(check("a.cuh", "// A.\nint a;\n"), "a.cuh: a header has #pragma once");
  ExpectOne(check("a.sh", "#!/bin/sh\n"), "a.sh: a script");
}

TEST(TidyRules, Sizes) {
  std::string many;
  for (size_t i = 0; i <= kFileLinesMax; ++i) many += "x\n";
  ExpectOne(CheckSizes({MakeFile("a.cc", many)}), "a.cc: 701 lines");
  const std::string wide(kColumnsMax - 2, 'x');
  ExpectOne(CheckSizes({MakeFile("a.cc", "\n" + wide + " yz\n")}), "a.cc:2: 1 lines");
  ExpectOne(CheckSizes({MakeFile("a.cu", wide + " yz\n")}), "a.cu:1: 1 lines");
  ExpectNone(CheckSizes({MakeFile("a.cc", wide + " y\n"), MakeFile("b.cc", "\xC3\xA9 " + wide)}));
}

TEST(TidyRules, ArchitectureAndLinks) {
  const SourceFile page = MakeFile("docs/architecture.md", "**model.** Of.\n[a](b.md#c) [d](#e)");
  ExpectOne(
      CheckArchitectureNamesFolders({page, MakeFile("model/a.cc", ""), MakeFile("ckpt/a.cc", "")}),
      "docs/architecture.md: its code map has no paragraph for ckpt");
  ExpectOne(CheckLinks({page}, [](const std::string&) { return false; }),
            "docs/architecture.md:2: there is no docs/b.md");
  ExpectNone(CheckLinks({page}, [](const std::string& path) { return path == "docs/b.md"; }));
}

}  // namespace
}  // namespace perdure
