/* An app in C++ that uses all of eecompile.hpp with the network of tiny.c, and says what it got. */

#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "eecompile.hpp"

extern "C" const ee_library ee_library_tiny;

using eecompile::Answer;
using eecompile::Batch;
using eecompile::Error;
using eecompile::Network;
using eecompile::Session;

template <typename T>
constexpr bool only_moves = std::is_nothrow_move_constructible_v<T> &&
                            std::is_move_assignable_v<T> && !std::is_copy_constructible_v<T> &&
                            !std::is_copy_assignable_v<T>;
static_assert(only_moves<Network> && only_moves<Session> && only_moves<Answer>);
static_assert(only_moves<Batch>);
static_assert(std::is_base_of_v<std::exception, Error>);

namespace {

void tell(const char *what, const Answer &answer) {
    std::printf("%s exit %u label %u macs %llu flags %d logits", what,
                static_cast<unsigned>(answer.exit()), static_cast<unsigned>(answer.label()),
                static_cast<unsigned long long>(answer.macs()),
                answer.halted() + 2 * answer.cancelled() + 4 * answer.offloaded());
    for (const float logit : answer.logits()) std::printf(" %.9g", static_cast<double>(logit));
    std::printf("\n");
}

template <typename Call>
void refused(const char *what, Call &&call) {
    try {
        call();
        std::printf("%s went through\n", what);
    } catch (const Error &error) {
        std::printf("%s %s: %s\n", what, ee_status_name(error.status()), error.what());
    } catch (const std::logic_error &error) {
        std::printf("%s threw %s\n", what, error.what());
    }
}

void ask_network(const Network &network) {
    const ee_network_info about = network.about();
    const ee_input_info input = network.input(0);
    std::printf("network %s exits %u classes %u policies", about.name,
                static_cast<unsigned>(about.exits), static_cast<unsigned>(about.classes));
    for (std::uint32_t i = 0; i < about.policies; i++)
        std::printf(" %s", network.policy_name(i).c_str());
    std::printf(" beyond '%s' last %s label %s\n", network.policy_name(about.policies).c_str(),
                network.exit_name(about.exits - 1).c_str(), network.label(1).c_str());
    std::printf("input %s bytes %zu normalizes %d\n", input.name, input.bytes, input.normalizes);
    refused("beyond", [&] { network.input(1); });
}

void run_alone(const Network &network, const std::vector<float> &image) {
    Session session(network);
    session.set_policy("");
    tell("whole", session.run_whole(image));
    Answer answer;
    session.run_into(answer, eecompile::View<float>(image));
    const float *place = answer.logits().data();
    session.run_into(answer, eecompile::Input(image.data(), image.size() * sizeof(float)));
    tell("off", answer);
    std::printf("same place %d\n", place == answer.logits().data());
    const Answer moved = std::move(answer);
    std::printf("moved %d %d\n", place == moved.logits().data(), answer.logits().empty());
    tell("raw", session.run_raw(std::vector<unsigned char>{0, 51, 102, 255}));
    refused("few", [&] { session.run(std::vector<float>(3)); });
    refused("two", [&] { session.run(image, image); });
    refused("unknown", [&] { session.set_policy("nobody"); });
    std::printf("cancel %d output %d\n", session.cancel(), session.output("nobody") == nullptr);
}

void halt(const Network &network, const std::vector<float> &image) {
    Session session(network);
    session.set_policy("");
    eecompile::Halt little;
    little.macs = 1e-9;
    refused("little", [&] { session.set_halt(little); });
    little.macs = 0.5;
    session.set_halt(little);
    tell("halted", session.run(image));
    session.set_default_policy();
    const eecompile::Statistics told = session.statistics();
    std::printf("answers %llu halted %llu by late %llu\n",
                static_cast<unsigned long long>(told.all.answers),
                static_cast<unsigned long long>(told.all.halted),
                static_cast<unsigned long long>(told.exits.at(1)));
    session.reset_statistics();
    std::printf("reset %llu state %zu\n",
                static_cast<unsigned long long>(session.statistics().all.answers),
                session.state().size());
    refused("state", [&] { session.set_state({1, 2, 3}); });
    session.set_state({});
}

void call_back(const Network &network, const std::vector<float> &image) {
    eecompile::Options options;
    double drawn_j = 0;
    options.policy = "";
    options.meter = [&] { return drawn_j += 0.25; };
    Session session = Session(network, options);
    Session other(network);
    other = std::move(session); /* closes the one before */
    eecompile::Policy policy;
    std::uint32_t asked = 9;
    policy.decide = [&](std::uint32_t exit, eecompile::View<float> logits,
                        eecompile::View<float> means) -> std::int32_t {
        asked = exit;
        return logits.size() == 3 && means.size() == (exit ? 3 : 0) && exit ? EE_LEAVE : 1;
    };
    other.set_policy(policy);
    Answer answer = other.run(image);
    tell("own", answer);
    std::printf("asked %u drew %g\n", static_cast<unsigned>(asked), answer.energy_j());
    policy.decide = [](std::uint32_t, eecompile::View<float>,
                       eecompile::View<float>) -> std::int32_t { throw std::logic_error("own"); };
    other.set_policy(policy);
    refused("policy", [&] { other.run(image); });
    policy.decide = nullptr;
    refused("nothing", [&] { other.set_policy(policy); });
    other.set_policy("");
    tell("after", other.run(image));
}

void run_batch(const Network &network, const std::vector<float> &images) {
    Session session(network);
    Batch batch = session.run_batch(images.size() / 4, images);
    const Batch moved = std::move(batch);
    for (std::size_t i = 0; i < moved.size(); i++) tell("batch", moved[i]);
    std::printf("logits %zu same %d\n", moved.logits().size(),
                moved[1].logits().data() == moved.logits().data() + 3);
    std::printf("empty %zu\n", session.run_batch(0, std::vector<float>()).size());
    refused("batch", [&] { session.run_batch(3, std::vector<float>(4)); });
}

} // namespace

int main(int count, char **given) try {
    if (count != 2) return 2;
    Network opened(ee_library_tiny, given[1]);
    const Network network = std::move(opened);
    const std::vector<float> images{0.5F, -1.0F, 2.0F, 0.25F, 3.0F, 0.0F, -2.0F, 1.0F};
    const std::vector<float> image(images.begin(), images.begin() + 4);
    ask_network(network);
    run_alone(network, image);
    halt(network, image);
    call_back(network, image);
    run_batch(network, images);
    refused("open", [] { Network(ee_library_tiny, "/nowhere/at/all"); });
    refused("memory", [] { Network(ee_library_tiny, "x", 1); });
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
