// A small HTTP server for what others come to fetch: metrics, targets, whether we live. GNU
// libmicrohttpd does the protocol, in a thread of its own; what is served are texts that somebody
// has put there, so a request costs training nothing.
//
// GET and HEAD of known paths alone. Where a token is set, without "Authorization: Bearer TOKEN"
// nobody gets anything but 401; with a certificate it speaks TLS only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

struct MHD_Connection;
struct MHD_Daemon;

namespace perdure {

struct HttpEndpointOptions {
  std::string address = "127.0.0.1";  // Of this machine, numeric.
  int port = 0;                       // 0: one that is free.
  std::string token;                  // Empty: none is asked for.
  std::string certificate;            // PEM file with certificate and key; empty: no TLS.
};

class HttpEndpoint {
 public:
  // Unavailable: the address and port cannot be had, or the certificate not be used.
  static absl::StatusOr<std::unique_ptr<HttpEndpoint>> Start(const HttpEndpointOptions& options);
  // Ends what is being answered.
  ~HttpEndpoint();
  HttpEndpoint(const HttpEndpoint&) = delete;
  HttpEndpoint& operator=(const HttpEndpoint&) = delete;

  int port() const { return port_; }
  // From now on `path` ("/metrics") answers with this. Any thread.
  void Serve(const std::string& path, const std::string& content_type, std::string body);
  int64_t requests() const;  // That were answered with 200.

 private:
  struct Page {
    std::string content_type;
    std::shared_ptr<const std::string> body;
  };
  friend struct HttpAnswers;

  explicit HttpEndpoint(const HttpEndpointOptions& options) : options_(options) {}
  int Answer(MHD_Connection* connection, const std::string& path, const std::string& method);

  const HttpEndpointOptions options_;
  std::string pem_;  // As long as it serves.
  MHD_Daemon* daemon_ = nullptr;
  int port_ = 0;
  mutable std::mutex mutex_;
  std::map<std::string, Page> pages_;
  int64_t requests_ = 0;
};

}  // namespace perdure
