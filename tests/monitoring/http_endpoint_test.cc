// The endpoint over real sockets, asked by curl.
#include "monitoring/http_endpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <thread>
#include <vector>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::string Shell(const std::string& command) {
  std::string output;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer{};
  while (size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe))
    output.append(buffer.data(), got);
  ::pclose(pipe);
  return output;
}

std::string Get(const HttpEndpoint& endpoint, const std::string& path,
                const std::string& options = "") {
  return Shell(fmt::format("curl -sS -i --max-time 20 {} 'http://127.0.0.1:{}{}'", options,
                           endpoint.port(), path));
}

std::unique_ptr<HttpEndpoint> Started(HttpEndpointOptions options = {}) {
  auto endpoint = HttpEndpoint::Start(options);
  EXPECT_TRUE(endpoint.ok()) << endpoint.status();
  return endpoint.ok() ? *std::move(endpoint) : nullptr;
}

class HttpEndpointTest : public testing::Test {
 protected:
  void SetUp() override {
    if (Shell("curl --version").find("curl ") != 0) GTEST_SKIP() << "curl is not installed";
  }
};

TEST_F(HttpEndpointTest, ServesWhatWasPutThere) {
  const auto endpoint = Started();
  endpoint->Serve("/metrics", "text/plain; version=0.0.4; charset=utf-8", "a 1\n");
  const std::string answer = Get(*endpoint, "/metrics");
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  EXPECT_THAT(answer, HasSubstr("\r\n\r\na 1\n"));
  endpoint->Serve("/metrics", "text/plain", std::string(3 << 20, 'x'));
  EXPECT_EQ(Get(*endpoint, "/metrics").size() > (3U << 20), true);
  EXPECT_EQ(endpoint->requests(), 2);
  const std::string head = Get(*endpoint, "/metrics", "--head");
  EXPECT_THAT(head, HasSubstr("Content-Length: 3145728"));
  EXPECT_LT(head.size(), 500U);
}

TEST_F(HttpEndpointTest, RefusesTheRest) {
  const auto endpoint = Started();
  endpoint->Serve("/metrics", "text/plain", "a 1\n");
  for (const char* path : {"/", "/metrics/", "/metrics2", "/../etc/passwd", "/%2e%2e/etc/passwd"})
    EXPECT_THAT(Get(*endpoint, path, "--path-as-is"), HasSubstr("HTTP/1.1 40")) << path;
  EXPECT_THAT(Get(*endpoint, "/metrics", "-X POST -d x"), StartsWith("HTTP/1.1 405"));
  EXPECT_THAT(Get(*endpoint, "/metrics", "-X DELETE"), StartsWith("HTTP/1.1 405"));
  EXPECT_EQ(endpoint->requests(), 0);
}

TEST_F(HttpEndpointTest, AsksForTheToken) {
  const auto endpoint = Started({.token = "secret"});
  endpoint->Serve("/metrics", "text/plain", "a 1\n");
  EXPECT_THAT(Get(*endpoint, "/metrics"), StartsWith("HTTP/1.1 401"));
  for (const char* wrong :
       {"Bearer secre", "Bearer secrets", "secret", "Basic c2VjcmV0", "Bearer "})
    EXPECT_THAT(Get(*endpoint, "/metrics", fmt::format("-H 'Authorization: {}'", wrong)),
                StartsWith("HTTP/1.1 401"))
        << wrong;
  EXPECT_THAT(Get(*endpoint, "/metrics", "-H 'Authorization: Bearer secret'"),
              StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(Get(*endpoint, "/none"), StartsWith("HTTP/1.1 401")) << "nor what there is";
}

TEST_F(HttpEndpointTest, SpeaksTls) {
  if (Shell("openssl version").find("OpenSSL") != 0) GTEST_SKIP() << "openssl is not installed";
  const std::string pem = fmt::format("{}endpoint.{}.pem", testing::TempDir(), ::getpid());
  Shell(fmt::format(
      "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {0} "
      "-out {0}.crt && cat {0}.crt >> {0}",
      pem));
  const auto endpoint = Started({.certificate = pem});
  ASSERT_NE(endpoint, nullptr);
  endpoint->Serve("/metrics", "text/plain", "a 1\n");
  EXPECT_THAT(Shell(fmt::format("curl -sS --max-time 20 -k https://127.0.0.1:{}/metrics",
                                endpoint->port())),
              "a 1\n");
  EXPECT_THAT(Get(*endpoint, "/metrics"), testing::Not(HasSubstr("a 1")));
  std::filesystem::remove(pem);
  std::filesystem::remove(pem + ".crt");
}

TEST_F(HttpEndpointTest, SaysWhatItCannotDo) {
  const auto endpoint = Started();
  const auto taken = HttpEndpoint::Start({.port = endpoint->port()});
  EXPECT_TRUE(absl::IsUnavailable(taken.status())) << taken.status();
  EXPECT_THAT(Message(taken.status()), HasSubstr(std::to_string(endpoint->port())));
  const auto none = HttpEndpoint::Start({.certificate = "/no/such.pem"});
  EXPECT_TRUE(absl::IsUnavailable(none.status())) << none.status();
  EXPECT_THAT(Message(none.status()), HasSubstr("/no/such.pem"));
}

// While somebody replaces what is served, whoever asks gets one or the other whole.
TEST_F(HttpEndpointTest, IsAskedWhileItChanges) {
  const auto endpoint = Started();
  endpoint->Serve("/metrics", "text/plain", std::string(100000, 'a'));
  std::thread changes([&] {
    for (int i = 0; i < 200; ++i)
      endpoint->Serve("/metrics", "text/plain", std::string(100000, i % 2 == 0 ? 'b' : 'a'));
  });
  for (int i = 0; i < 5; ++i) {
    const std::string answer = Get(*endpoint, "/metrics");
    const std::string body = answer.substr(answer.find("\r\n\r\n") + 4);
    EXPECT_EQ(body.size(), 100000U);
    EXPECT_EQ(body.find_first_not_of(body[0]), std::string::npos);
  }
  changes.join();
}

}  // namespace
}  // namespace perdure
