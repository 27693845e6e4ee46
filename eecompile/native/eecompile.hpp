/* eecompile.hpp: eecompile.h for C++17 and later, nothing else needed.
 *
 *     #include "resnet56.h"
 *     #include "eecompile.hpp"
 *
 *     eecompile::Network network(ee_library_resnet56, "resnet56.eec");
 *     eecompile::Session session(network);
 *     std::vector<float> image(3 * 32 * 32);
 *     eecompile::Answer answer = session.run(image);
 *     std::puts(network.exit_name(answer.exit()).c_str());
 *
 * Whatever fails throws an Error. Objects close what they opened; they can be moved, not copied. A
 * session keeps its network open. Threads: as eecompile.h says.
 */
#ifndef EECOMPILE_HPP
#define EECOMPILE_HPP

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "eecompile.h"

namespace eecompile {

/// What went wrong: a status, with the message of eecompile.h in `what()`.
class Error : public std::runtime_error {
  public:
    Error(ee_status status, const std::string &message)
        : std::runtime_error(message), status_(status) {}
    ee_status status() const noexcept { return status_; }

  private:
    ee_status status_;
};

/// Elements of somebody else, one after the other.
template <typename T>
class View {
  public:
    View() noexcept : data_(nullptr), size_(0) {}
    View(const T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    View(const std::vector<T> &elements) noexcept
        : data_(elements.data()), size_(elements.size()) {}
    const T *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    const T *begin() const noexcept { return data_; }
    const T *end() const noexcept { return data_ + size_; }
    const T &operator[](std::size_t index) const noexcept { return data_[index]; }

  private:
    const T *data_;
    std::size_t size_;
};

/// One input: elements of any type, dense; as many bytes as the network reads.
class Input {
  public:
    template <typename T>
    Input(const std::vector<T> &elements) noexcept
        : data_(elements.data()), bytes_(elements.size() * sizeof(T)) {}
    template <typename T, std::size_t N>
    Input(const std::array<T, N> &elements) noexcept
        : data_(elements.data()), bytes_(N * sizeof(T)) {}
    template <typename T>
    Input(const View<T> &elements) noexcept
        : data_(elements.data()), bytes_(elements.size() * sizeof(T)) {}
    Input(const void *data, std::size_t bytes) noexcept : data_(data), bytes_(bytes) {}
    const void *data() const noexcept { return data_; }
    std::size_t bytes() const noexcept { return bytes_; }

  private:
    const void *data_;
    std::size_t bytes_;
};

/// What each sample may spend at most: see ee_set_halt.
struct Halt {
    static constexpr double unlimited = std::numeric_limits<double>::quiet_NaN();
    double macs = unlimited;
    double latency_s = unlimited;
    double energy_j = unlimited;
};

/// What came of setting a clock: `not_now` is asked again with the next sample, `never` no more.
enum class Clock : int { set = 0, not_now = 1, never = -1 };

/// An app that owns the clocks: see ee_governor.
struct Governor {
    std::function<bool(const char *cluster, double frequency_hz)> offers{};
    std::function<Clock(const char *cluster, double frequency_hz)> set{};
    std::function<void()> restore{};
};

/// Joules drawn since any moment, ever rising: see ee_meter.
using Meter = std::function<double()>;

/// Another device: see ee_server. Writes the network's own logits; returns whether it has.
using Server = std::function<bool(
    std::uint32_t exit, View<const void *> values, float *logits)>;

/// A policy of the app's own: see ee_policy. `class_means` may be empty.
struct Policy {
    std::uint32_t first = 0;
    std::function<std::int32_t(std::uint32_t exit, View<float> logits, View<float> class_means)>
        decide{};
};

/// See ee_options. The session keeps what is given here.
struct Options {
    std::optional<std::string> policy{}; ///< none: the artifact's default; "": decisions off
    std::int32_t threads = 0;            ///< 0: see ee_options
    bool clocks = false;
    Governor governor{};
    Meter meter{};
    Server server{};
};

namespace detail {

inline void check(ee_status status) {
    if (status != EE_OK) throw Error(status, ee_message());
}

inline std::string text_or_nothing(const char *text) { return text ? text : ""; }

/// An app's functions as C calls them. What they throw does not pass through C: it is kept here.
struct Callbacks {
    explicit Callbacks(Options &options)
        : governor(std::move(options.governor)), meter(std::move(options.meter)),
          server(std::move(options.server)) {}
    Callbacks(const Callbacks &) = delete; // C has its address.
    Callbacks &operator=(const Callbacks &) = delete;
    ~Callbacks() = default;

    Governor governor;
    Meter meter;
    Server server;
    std::exception_ptr thrown{};
    ee_governor c_governor{this, offers, set, restore};
    ee_meter c_meter{this, energy_j};
    ee_server c_server{this, answer};

    /// The result, or `otherwise` where something was thrown.
    template <typename Result, typename Call>
    Result guarded(Result otherwise, Call &&call) noexcept {
        try {
            return call();
        } catch (...) {
            if (!thrown) thrown = std::current_exception();
            return otherwise;
        }
    }

    void rethrow() {
        if (thrown) std::rethrow_exception(std::exchange(thrown, nullptr));
    }

    static Callbacks &of(void *context) noexcept { return *static_cast<Callbacks *>(context); }

    static int offers(void *context, const char *cluster, double frequency_hz) {
        const Governor &governor = of(context).governor;
        return of(context).guarded(
            0, [&] { return governor.offers && governor.offers(cluster, frequency_hz) ? 1 : 0; });
    }

    static int set(void *context, const char *cluster, double frequency_hz) {
        const Governor &governor = of(context).governor;
        return static_cast<int>(of(context).guarded(
            Clock::never, [&] { return governor.set(cluster, frequency_hz); }));
    }

    static void restore(void *context) {
        const Governor &governor = of(context).governor;
        of(context).guarded(0, [&] {
            if (governor.restore) governor.restore();
            return 0;
        });
    }

    static double energy_j(void *context) {
        return of(context).guarded(Halt::unlimited, [&] { return of(context).meter(); });
    }

    static int answer(
        void *context, std::uint32_t exit, const void *const *values, std::uint32_t count,
        float *logits) {
        const View<const void *> given(values, count);
        return of(context).guarded(
            1, [&] { return of(context).server(exit, given, logits) ? 0 : 1; });
    }
};

/// An app's policy as C calls it.
struct OwnPolicy {
    OwnPolicy(Callbacks &told, Policy asked)
        : callbacks(told), policy(std::move(asked)), c_policy{this, policy.first, decide} {}
    OwnPolicy(const OwnPolicy &) = delete;
    OwnPolicy &operator=(const OwnPolicy &) = delete;
    ~OwnPolicy() = default;

    Callbacks &callbacks;
    Policy policy;
    ee_policy c_policy;

    static std::int32_t decide(
        void *context, std::uint32_t exit, const float *logits, const float *class_means,
        std::uint32_t classes) {
        OwnPolicy &own = *static_cast<OwnPolicy *>(context);
        const View<float> scores(logits, logits ? classes : 0);
        const View<float> means(class_means, class_means ? classes : 0);
        return own.callbacks.guarded<std::int32_t>(
            EE_LEAVE, [&] { return own.policy.decide(exit, scores, means); });
    }
};

struct CloseNetwork {
    void operator()(ee_network *network) const noexcept { ee_close(network); }
};

struct CloseSession {
    void operator()(ee_session *session) const noexcept { ee_session_close(session); }
};

} // namespace detail

/// A network's weights and plan, opened.
class Network {
  public:
    /// `path` is the artifact's folder, or its packed file: see ee_open.
    Network(const ee_library &library, const std::string &path) : network_(nullptr) {
        ee_network *found = nullptr;
        detail::check(ee_open(&library, path.c_str(), &found));
        network_.reset(found);
    }

    /// A packed file's bytes, which must stay: see ee_open_memory.
    Network(const ee_library &library, const void *bytes, std::size_t count) : network_(nullptr) {
        ee_network *found = nullptr;
        detail::check(ee_open_memory(&library, bytes, count, &found));
        network_.reset(found);
    }

    ee_network_info about() const {
        ee_network_info info = EE_NETWORK_INFO;
        detail::check(ee_network_about(network_.get(), &info));
        return info;
    }

    ee_input_info input(std::uint32_t index) const {
        ee_input_info info = EE_INPUT_INFO;
        detail::check(ee_input_about(network_.get(), index, &info));
        return info;
    }

    /// Empty beyond the last one; as the other names.
    std::string exit_name(std::uint32_t exit) const {
        return detail::text_or_nothing(ee_exit_name(network_.get(), exit));
    }

    std::string policy_name(std::uint32_t policy) const {
        return detail::text_or_nothing(ee_policy_name(network_.get(), policy));
    }

    std::string label(std::uint32_t label) const {
        return detail::text_or_nothing(ee_label(network_.get(), label));
    }

    ee_network *get() const noexcept { return network_.get(); }

  private:
    std::unique_ptr<ee_network, detail::CloseNetwork> network_;
};

/// An answer, with its own copy of the logits; one of a batch: with the batch's.
class Answer {
  public:
    Answer() : found_(EE_ANSWER), own_() {}
    Answer(const Answer &) = delete;
    Answer &operator=(const Answer &) = delete;
    Answer(Answer &&other) noexcept
        : found_(std::exchange(other.found_, ee_answer(EE_ANSWER))), own_(std::move(other.own_)) {}
    Answer &operator=(Answer &&other) noexcept {
        found_ = std::exchange(other.found_, ee_answer(EE_ANSWER));
        own_ = std::move(other.own_);
        return *this;
    }
    ~Answer() = default;

    View<float> logits() const noexcept { return {found_.logits, found_.classes}; }
    std::uint32_t label() const noexcept { return found_.label; }
    std::uint32_t exit() const noexcept { return found_.exit; }
    std::uint32_t segments_run() const noexcept { return found_.segments_run; }
    std::uint32_t heads_run() const noexcept { return found_.heads_run; }
    std::uint32_t blocks_run() const noexcept { return found_.blocks_run; }
    bool offloaded() const noexcept { return (found_.flags & EE_OFFLOADED) != 0; }
    bool halted() const noexcept { return (found_.flags & EE_HALTED) != 0; }
    bool cancelled() const noexcept { return (found_.flags & EE_CANCELLED) != 0; }
    bool late() const noexcept { return (found_.flags & EE_LATE) != 0; }
    std::uint64_t macs() const noexcept { return found_.macs; }
    double latency_s() const noexcept { return found_.latency_s; }
    double energy_j() const noexcept { return found_.energy_j; }
    double frequency_hz() const noexcept { return found_.frequency_hz; }

  private:
    friend class Batch;
    friend class Session;

    /// Allocates only where it had fewer logits before.
    void keep(const ee_answer &found) {
        if (found.logits) own_.assign(found.logits, found.logits + found.classes);
        found_ = found;
        if (found.logits) found_.logits = own_.data();
    }

    ee_answer found_;
    std::vector<float> own_;
};

/// Answers of several samples, and their logits.
class Batch {
  public:
    Batch(const Batch &) = delete;
    Batch &operator=(const Batch &) = delete;
    Batch(Batch &&) = default;
    Batch &operator=(Batch &&) = default;
    ~Batch() = default;

    std::size_t size() const noexcept { return answers_.size(); }
    /// Its logits are the batch's.
    Answer operator[](std::size_t index) const {
        Answer answer;
        answer.found_ = answers_[index];
        return answer;
    }
    /// float32[size()][classes]
    View<float> logits() const noexcept { return logits_; }

  private:
    friend class Session;
    Batch(std::size_t count, std::uint32_t classes)
        : answers_(count, ee_answer(EE_ANSWER)), logits_(count * classes) {}

    std::vector<ee_answer> answers_;
    std::vector<float> logits_;
};

/// Sums since the session was opened: see ee_statistics; `exits` are answers by exit.
struct Statistics {
    ee_statistics all = EE_STATISTICS;
    std::vector<std::uint64_t> exits{};
};

/// Memory for one sample under way, and who decides.
class Session {
  public:
    explicit Session(const Network &network, Options options = {})
        : callbacks_(std::make_unique<detail::Callbacks>(options)), policy_(nullptr),
          session_(nullptr), inputs_(), exits_(0), classes_(0) {
        const ee_network_info info = network.about();
        exits_ = info.exits;
        classes_ = info.classes;
        for (std::uint32_t i = 0; i < info.inputs; i++)
            inputs_.push_back(sizes_of(network.input(i)));
        ee_options given = EE_OPTIONS;
        given.policy = options.policy ? options.policy->c_str() : nullptr;
        given.threads = options.threads;
        given.clocks = options.clocks;
        given.governor = callbacks_->governor.set ? &callbacks_->c_governor : nullptr;
        given.meter = callbacks_->meter ? &callbacks_->c_meter : nullptr;
        given.server = callbacks_->server ? &callbacks_->c_server : nullptr;
        ee_session *found = nullptr;
        const ee_status status = ee_session_open(network.get(), &given, &found);
        session_.reset(found);
        check(status);
    }

    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;
    Session(Session &&) noexcept = default;
    Session &operator=(Session &&other) noexcept {
        session_ = std::move(other.session_); // Closes the one before, which may call its app.
        policy_ = std::move(other.policy_);
        callbacks_ = std::move(other.callbacks_);
        inputs_ = std::move(other.inputs_);
        exits_ = other.exits_;
        classes_ = other.classes_;
        return *this;
    }
    ~Session() = default;

    /// Answers one sample: as many inputs as the network has, in order.
    template <typename... Inputs>
    Answer run(const Inputs &...inputs) {
        Answer answer;
        run_into(answer, inputs...);
        return answer;
    }

    /// The same without allocating, where `answer` has been filled before.
    template <typename... Inputs>
    void run_into(Answer &answer, const Inputs &...inputs) {
        ask(ee_run, answer, pointers(false, 1, inputs...));
    }

    /// The same of raw data, 8-bit integers: see ee_run_raw.
    template <typename... Inputs>
    Answer run_raw(const Inputs &...inputs) {
        Answer answer;
        ask(ee_run_raw, answer, pointers(true, 1, inputs...));
        return answer;
    }

    /// The network's own answer, decisions off.
    template <typename... Inputs>
    Answer run_whole(const Inputs &...inputs) {
        Answer answer;
        ask(ee_run_whole, answer, pointers(false, 1, inputs...));
        return answer;
    }

    /// `count` samples, each input's one after the other: see ee_run_batch.
    template <typename... Inputs>
    Batch run_batch(std::size_t count, const Inputs &...inputs) {
        const auto given = pointers(false, count, inputs...);
        Batch batch(count, classes_);
        if (count)
            check(ee_run_batch(
                get(), given.data(), count, batch.logits_.data(), batch.answers_.data()));
        return batch;
    }

    /// A policy of the artifact, by name; "": decisions off.
    void set_policy(const std::string &name) {
        check(ee_set_policy(get(), name.c_str()));
        policy_.reset();
    }

    void set_default_policy() {
        check(ee_set_policy(get(), nullptr));
        policy_.reset();
    }

    /// The session keeps it.
    void set_policy(Policy policy) {
        if (!policy.decide) throw Error(EE_BAD_ARGUMENT, "the policy has no `decide`");
        auto own = std::make_unique<detail::OwnPolicy>(*callbacks_, std::move(policy));
        const ee_status status = ee_set_own_policy(get(), &own->c_policy);
        if (status == EE_OK) policy_.swap(own);
        check(status);
    }

    void set_halt(const Halt &halt) {
        check(ee_set_halt(get(), halt.macs, halt.latency_s, halt.energy_j));
    }

    /// Why clocks are left alone, or some of them; "" where they are not: see ee_clocks_reason.
    std::string clocks_reason() const { return ee_clocks_reason(get()); }

    /// From any thread, while another one runs a sample: see ee_cancel.
    bool cancel() noexcept { return ee_cancel(get()) != 0; }

    /// See ee_output; nullptr where there is none.
    const void *output(const std::string &name) const noexcept {
        return ee_output(get(), name.c_str());
    }

    Statistics statistics() const {
        Statistics found;
        found.exits.resize(exits_);
        detail::check(ee_statistics_get(get(), &found.all, found.exits.data()));
        return found;
    }

    void reset_statistics() noexcept { ee_statistics_reset(get()); }

    /// What policies that learn have learned: see ee_state_get.
    std::vector<unsigned char> state() const {
        std::size_t count = 0;
        detail::check(ee_state_get(get(), nullptr, &count));
        std::vector<unsigned char> bytes(count);
        if (count) detail::check(ee_state_get(get(), bytes.data(), &count));
        return bytes;
    }

    void set_state(const std::vector<unsigned char> &bytes) {
        static const unsigned char nothing = 0;
        detail::check(ee_state_set(get(), bytes.empty() ? &nothing : bytes.data(), bytes.size()));
    }

    ee_session *get() const noexcept { return session_.get(); }

  private:
    /// Bytes of one sample, as they are and raw.
    struct Sizes {
        std::size_t plain, raw;
    };

    static Sizes sizes_of(const ee_input_info &input) {
        std::size_t elements = 1;
        for (std::uint32_t i = 0; i < input.rank; i++) elements *= input.shape[i];
        return {input.bytes, input.normalizes ? elements : input.bytes};
    }

    void check(ee_status status) {
        callbacks_->rethrow(); // What an app's function threw says more than what came of it.
        detail::check(status);
    }

    template <typename... Inputs>
    std::array<const void *, sizeof...(Inputs)> pointers(
        bool raw, std::size_t samples, const Inputs &...inputs) const {
        static_assert(sizeof...(Inputs) > 0, "give the network's inputs");
        const std::array<Input, sizeof...(Inputs)> given{{Input(inputs)...}};
        if (given.size() != inputs_.size())
            throw Error(
                EE_BAD_ARGUMENT, "the network has " + std::to_string(inputs_.size()) +
                                     " inputs, not " + std::to_string(given.size()));
        std::array<const void *, sizeof...(Inputs)> found{};
        for (std::size_t i = 0; i < given.size(); i++) {
            const std::size_t one = raw ? inputs_[i].raw : inputs_[i].plain;
            if (given[i].bytes() != samples * one)
                throw Error(
                    EE_BAD_ARGUMENT, "input " + std::to_string(i) + " has " +
                                         std::to_string(given[i].bytes()) + " bytes, not " +
                                         std::to_string(samples) + " x " + std::to_string(one));
            found[i] = given[i].data();
        }
        return found;
    }

    template <typename Call, std::size_t N>
    void ask(Call *call, Answer &answer, const std::array<const void *, N> &inputs) {
        ee_answer found = EE_ANSWER;
        check(call(get(), inputs.data(), &found));
        answer.keep(found);
    }

    // In this order: closing the session may still call the app's functions.
    std::unique_ptr<detail::Callbacks> callbacks_;
    std::unique_ptr<detail::OwnPolicy> policy_;
    std::unique_ptr<ee_session, detail::CloseSession> session_;
    std::vector<Sizes> inputs_;
    std::uint32_t exits_, classes_;
};

} // namespace eecompile

#endif
