// The hook scripts of launch/hooks as job.hook calls them: with a mail program and a web service of
// the test's own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "launch/hook.h"
#include "runtime/base/check.h"
#include "runtime/base/files.h"
#include "runtime/base/status.h"
#include "tests/launch/perdure_command.h"

namespace perdure {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

// A variable of the environment, for as long as it lives.
class Variable {
 public:
  Variable(std::string name, const std::string& value) : name_(std::move(name)) {
    if (const char* const before = std::getenv(name_.c_str()); before != nullptr) before_ = before;
    ::setenv(name_.c_str(), value.c_str(), 1);
  }
  ~Variable() {
    if (before_.has_value())
      ::setenv(name_.c_str(), before_->c_str(), 1);
    else
      ::unsetenv(name_.c_str());
  }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const std::string name_;
  std::optional<std::string> before_;
};

class Hooks : public testing::Test {
 protected:
  Hooks() : folder_(FreshFolder("hooks")), bin_(folder_ + "/bin") {
    fs::create_directories(bin_);
    // The machine's own mail program must not be found.
    for (const char* tool : {"env", "bash", "sh", "cat", "id", "tr", "curl"})
      for (const char* place : {"/usr/bin/", "/bin/"})
        if (const std::string path = std::string(place) + tool; fs::exists(path)) {
          fs::create_symlink(path, bin_ + "/" + tool);
          break;
        }
  }
  ~Hooks() override { fs::remove_all(folder_); }

  HookNews News(const std::string& script, const std::string& event) const {
    return {.hook = std::string(PERDURE_SOURCE_DIR) + "/launch/hooks/" + script,
            .event = event,
            .run_name = "lucie",
            .run_directory = "/scratch/a run",
            .job = 4711,
            .step = 5000,
            .why = "loss \"nan\"\\ at\nstep 5000\t($HOME)"};
  }
  // A program that writes its arguments and what it reads to `file`.
  void Program(const std::string& name, const std::string& file) const {
    const std::string path = bin_ + "/" + name;
    ASSERT_TRUE(ReplaceFile(path, "#!/bin/sh\n{ printf '<%s>' \"$@\"; echo; cat; } >" + folder_ +
                                      "/" + file + "\n")
                    .ok());
    fs::permissions(path, fs::perms::owner_all);
  }
  std::string Written(const std::string& file) const {
    return ReadFile(folder_ + "/" + file).value_or("");
  }

  const std::string folder_, bin_;
};

TEST_F(Hooks, MailsByMail) {
  Program("mail", "mail");
  Program("sendmail", "sendmail");
  const Variable path("PATH", bin_), to("PERDURE_MAIL_TO", "team@site.example");
  ASSERT_EQ(TellHook(News("mail.sh", "stopped")), absl::OkStatus());
  const std::string mail = Written("mail");
  EXPECT_THAT(
      mail, testing::StartsWith("<-s><perdure lucie: stopped at step 5000><team@site.example>\n"));
  EXPECT_THAT(mail, HasSubstr("loss \"nan\"\\ at\nstep 5000\t($HOME)\n"));
  EXPECT_THAT(mail, HasSubstr("job        4711\n"));
  EXPECT_THAT(mail, HasSubstr("perdure status /scratch/a run\n"));
  EXPECT_EQ(Written("sendmail"), "");
}

TEST_F(Hooks, MailsBySendmail) {
  Program("sendmail", "sendmail");
  const Variable path("PATH", bin_), to("PERDURE_MAIL_TO", "team@site.example");
  ASSERT_EQ(TellHook(News("mail.sh", "complete")), absl::OkStatus());
  EXPECT_THAT(Written("sendmail"),
              testing::StartsWith("<-i><-t>\nTo: team@site.example\nSubject: perdure lucie: "
                                  "complete at step 5000\n\nloss"));
}

TEST_F(Hooks, MailsOfSomeWordsOnly) {
  Program("mail", "mail");
  const Variable path("PATH", bin_), to("PERDURE_MAIL_TO", "a@b.example");
  for (const char* event : {"began", "left"})
    ASSERT_EQ(TellHook(News("mail.sh", event)), absl::OkStatus());
  EXPECT_EQ(Written("mail"), "");
  ASSERT_EQ(TellHook(News("mail.sh", "look")), absl::OkStatus());
  EXPECT_THAT(Written("mail"), HasSubstr("look"));
  const Variable events("PERDURE_MAIL_EVENTS", "began");
  ASSERT_EQ(TellHook(News("mail.sh", "began")), absl::OkStatus());
  EXPECT_THAT(Written("mail"), HasSubstr("began"));
}

TEST_F(Hooks, WhatCannotBeMailedIsSaid) {
  const Variable path("PATH", bin_);
  if (!fs::exists("/usr/sbin/sendmail") && !fs::exists("/usr/lib/sendmail")) {
    const absl::Status none = TellHook(News("mail.sh", "stopped"));
    EXPECT_THAT(Message(none), HasSubstr("neither mail nor sendmail is here"));
  }
  const Variable to("PERDURE_MAIL_TO", "-oQ/tmp");
  EXPECT_THAT(Message(TellHook(News("mail.sh", "stopped"))), HasSubstr("is no address"));
}

// Takes one request on a port of loopback, and answers with `status`.
class Service {
 public:
  explicit Service(const std::string& status) : status_(status) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* const at = reinterpret_cast<sockaddr*>(&address);
    PERDURE_CHECK(::bind(listener_, at, length) == 0);
    PERDURE_CHECK(::listen(listener_, 1) == 0);
    PERDURE_CHECK(::getsockname(listener_, at, &length) == 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~Service() {
    ::shutdown(listener_, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    ::close(listener_);
  }
  std::string url() const {
    return "http://127.0.0.1:" + std::to_string(port_) + "/hook?key=a%20b";
  }
  // What it was sent; after that it takes nothing more.
  std::string Request() {
    thread_.join();
    return request_;
  }

 private:
  void Serve() {
    const int connection = ::accept(listener_, nullptr, nullptr);
    if (connection < 0) return;
    char buffer[4096];
    size_t needs = std::string::npos;
    while (request_.size() < needs) {
      const ssize_t got = ::read(connection, buffer, sizeof buffer);
      if (got <= 0) break;
      request_.append(buffer, static_cast<size_t>(got));
      const size_t head = request_.find("\r\n\r\n"), length = request_.find("Content-Length: ");
      if (head != std::string::npos && length != std::string::npos)
        needs = head + 4 + std::stoul(request_.substr(length + 16));
    }
    const std::string answer = "HTTP/1.1 " + status_ + "\r\nContent-Length: 0\r\n\r\n";
    (void)!::write(connection, answer.data(), answer.size());
    ::close(connection);
  }

  const std::string status_;
  int listener_ = -1, port_ = 0;
  std::thread thread_;
  std::string request_;
};

class Webhook : public Hooks {
 protected:
  void SetUp() override {
    if (!fs::exists(bin_ + "/curl")) GTEST_SKIP() << "curl is not installed here";
  }
};

TEST_F(Webhook, PostsJson) {
  Service service("204 No Content");
  const Variable url("PERDURE_WEBHOOK_URL", service.url()), proxy("no_proxy", "127.0.0.1");
  ASSERT_EQ(TellHook(News("webhook.sh", "stopped")), absl::OkStatus());
  const std::string request = service.Request();
  EXPECT_THAT(request, testing::StartsWith("POST /hook?key="));
  EXPECT_THAT(request, HasSubstr("Content-Type: application/json\r\n"));
  const size_t head = request.find("\r\n\r\n");
  const json body = json::parse(request.substr(head + 4), nullptr, false);
  EXPECT_EQ(body, (json{{"event", "stopped"},
                        {"run", "lucie"},
                        {"run_dir", "/scratch/a run"},
                        {"job", "4711"},
                        {"step", "5000"},
                        {"why", "loss \"nan\"\\ at\nstep 5000\t($HOME)"},
                        {"text",
                         "perdure lucie: stopped at step 5000: loss \"nan\"\\ at\nstep "
                         "5000\t($HOME)"}}))
      << request;
}

TEST_F(Webhook, WhatTheServiceRefusesIsSaid) {
  Service service("403 Forbidden");
  const Variable url("PERDURE_WEBHOOK_URL", service.url()), proxy("no_proxy", "127.0.0.1");
  EXPECT_THAT(Message(TellHook(News("webhook.sh", "look"))), HasSubstr("403"));
  service.Request();
}

TEST_F(Webhook, NeedsAnAddressAndMayBeOfSomeWords) {
  EXPECT_THAT(Message(TellHook(News("webhook.sh", "look"))), HasSubstr("PERDURE_WEBHOOK_URL"));
  const Variable events("PERDURE_WEBHOOK_EVENTS", "stopped look");
  EXPECT_EQ(TellHook(News("webhook.sh", "began")), absl::OkStatus()) << "and asks for no address";
}

}  // namespace
}  // namespace perdure
