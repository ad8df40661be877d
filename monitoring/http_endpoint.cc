#include "monitoring/http_endpoint.h"

#include <microhttpd.h>
#include <netdb.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "runtime/base/files.h"
#include "runtime/base/status.h"

namespace perdure {
namespace {

// One scraper, whoever looks by hand meanwhile, and some that misbehave.
constexpr unsigned kConnectionsMax = 16;
// A client that does not send or take its bytes is let go.
constexpr unsigned kTimeoutSeconds = 10;
constexpr char kText[] = "text/plain; charset=utf-8";

// In a time that does not tell how much of it was right.
bool SameSecret(const char* given, const std::string& secret) {
  const size_t size = std::strlen(given);
  unsigned differs = size == secret.size() ? 0 : 1;
  for (size_t i = 0; i < secret.size(); ++i)
    differs |= static_cast<unsigned>(static_cast<unsigned char>(i < size ? given[i] : 0) ^
                                     static_cast<unsigned char>(secret[i]));
  return differs == 0;
}

int Reply(MHD_Connection* connection, unsigned code, const std::string& content_type,
          MHD_Response* response, const char* header = nullptr, const char* value = nullptr) {
  if (response == nullptr) return MHD_NO;
  MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type.c_str());
  MHD_add_response_header(response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
  if (header != nullptr) MHD_add_response_header(response, header, value);
  const int queued = MHD_queue_response(connection, code, response);
  MHD_destroy_response(response);
  return queued;
}

int Refuse(MHD_Connection* connection, unsigned code, const char* words,
           const char* header = nullptr, const char* value = nullptr) {
  return Reply(connection, code, kText,
               MHD_create_response_from_buffer(std::strlen(words), const_cast<char*>(words),
                                               MHD_RESPMEM_PERSISTENT),
               header, value);
}

// Of a response that is being sent: the text lives as long.
ssize_t ReadBody(void* body, uint64_t from, char* buffer, size_t size) {
  const std::string& text = **static_cast<std::shared_ptr<const std::string>*>(body);
  if (from >= text.size()) return MHD_CONTENT_READER_END_OF_STREAM;
  return static_cast<ssize_t>(text.copy(buffer, size, from));
}

void FreeBody(void* body) { delete static_cast<std::shared_ptr<const std::string>*>(body); }

}  // namespace

// The library's callbacks, which are plain functions.
struct HttpAnswers {
  static MHD_Result OnRequest(void* self, MHD_Connection* connection, const char* path,
                              const char* method, const char*, const char*, size_t* upload,
                              void** state) {
    // Called first with the head alone, and a refusal of what is uploaded then would not be heard.
    static int seen;
    if (*state == nullptr) {
      *state = &seen;
      return MHD_YES;
    }
    if (*upload > 0) {
      *upload = 0;
      return MHD_YES;
    }
    return static_cast<MHD_Result>(
        static_cast<HttpEndpoint*>(self)->Answer(connection, path, method));
  }
};

absl::StatusOr<std::unique_ptr<HttpEndpoint>> HttpEndpoint::Start(
    const HttpEndpointOptions& options) {
  std::unique_ptr<HttpEndpoint> endpoint(new HttpEndpoint(options));
  const bool six = options.address.find(':') != std::string::npos;
  const std::string where =
      fmt::format("{}:{}", six ? "[" + options.address + "]" : options.address, options.port);
  const addrinfo hints{.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                       .ai_family = AF_UNSPEC,
                       .ai_socktype = SOCK_STREAM};
  addrinfo* found = nullptr;
  if (::getaddrinfo(options.address.c_str(), std::to_string(options.port).c_str(), &hints,
                    &found) != 0)
    return InvalidArgument("{} is no numeric address to serve at", options.address);
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, ::freeaddrinfo);
  unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_USE_ITC;
  if (six) flags |= MHD_USE_IPv6;
  std::vector<MHD_OptionItem> more = {{MHD_OPTION_SOCK_ADDR, 0, found->ai_addr},
                                      {MHD_OPTION_CONNECTION_LIMIT, kConnectionsMax, nullptr},
                                      {MHD_OPTION_CONNECTION_TIMEOUT, kTimeoutSeconds, nullptr}};
  if (!options.certificate.empty()) {
    const absl::StatusOr<std::string> pem = ReadFile(options.certificate);
    if (!pem.ok())
      return Unavailable("cannot serve at {} with TLS: {}", where, Message(pem.status()));
    endpoint->pem_ = *pem;
    flags |= MHD_USE_TLS;
    more.push_back({MHD_OPTION_HTTPS_MEM_CERT, 0, endpoint->pem_.data()});
    more.push_back({MHD_OPTION_HTTPS_MEM_KEY, 0, endpoint->pem_.data()});
  }
  more.push_back({MHD_OPTION_END, 0, nullptr});
  errno = 0;
  endpoint->daemon_ = MHD_start_daemon(flags, static_cast<uint16_t>(options.port), nullptr, nullptr,
                                       &HttpAnswers::OnRequest, endpoint.get(), MHD_OPTION_ARRAY,
                                       more.data(), MHD_OPTION_END);
  if (endpoint->daemon_ == nullptr)
    return Unavailable("cannot serve at {}{}: {}", where,
                       options.certificate.empty() ? "" : " with " + options.certificate,
                       errno != 0 ? std::strerror(errno) : "libmicrohttpd does not say why");
  const MHD_DaemonInfo* bound = MHD_get_daemon_info(endpoint->daemon_, MHD_DAEMON_INFO_BIND_PORT);
  endpoint->port_ = bound == nullptr ? options.port : bound->port;
  return endpoint;
}

HttpEndpoint::~HttpEndpoint() {
  if (daemon_ != nullptr) MHD_stop_daemon(daemon_);
}

void HttpEndpoint::Serve(const std::string& path, const std::string& content_type,
                         std::string body) {
  Page page{content_type, std::make_shared<const std::string>(std::move(body))};
  const std::lock_guard lock(mutex_);
  pages_[path] = std::move(page);
}

int64_t HttpEndpoint::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

int HttpEndpoint::Answer(MHD_Connection* connection, const std::string& path,
                         const std::string& method) {
  if (method != MHD_HTTP_METHOD_GET && method != MHD_HTTP_METHOD_HEAD)
    return Refuse(connection, MHD_HTTP_METHOD_NOT_ALLOWED, "GET and HEAD only\n",
                  MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
  if (!options_.token.empty()) {
    const char* given =
        MHD_lookup_connection_value(connection, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    if (given == nullptr || !SameSecret(given, "Bearer " + options_.token))
      return Refuse(connection, MHD_HTTP_UNAUTHORIZED, "a bearer token is needed\n",
                    MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
  }
  Page page;
  {
    const std::lock_guard lock(mutex_);
    const auto found = pages_.find(path);
    if (found != pages_.end()) {
      page = found->second;
      ++requests_;
    }
  }
  if (page.body == nullptr)
    return Refuse(connection, MHD_HTTP_NOT_FOUND, "there are /metrics, /sd and /healthz\n");
  constexpr size_t kPiece = size_t{64} << 10;
  const uint64_t size = page.body->size();
  return Reply(connection, MHD_HTTP_OK, page.content_type,
               MHD_create_response_from_callback(
                   size, kPiece, ReadBody,
                   new std::shared_ptr<const std::string>(std::move(page.body)), FreeBody));
}

}  // namespace perdure
