/* SHA-256. Source: FIPS 180-4, sections 4.1.2, 4.2.2, 5.1.1, 5.3.3, 6.2.
 *
 * All of an artifact's weights are hashed before the first answer, so where the CPU has
 * instructions for it they are used. Which CPU this is is asked when a hash is made; the three ways
 * differ in nothing but speed.
 */

#include "internal.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__) && defined(__ARM_NEON)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#define BLOCK 64

/* Takes whole blocks into the state. */
typedef void (*blocks_t)(uint32_t state[8], const uint8_t *bytes, size_t blocks);

static const uint32_t round_constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* -- any CPU ----------------------------------------------------------------------------------- */

static inline uint32_t rotated(uint32_t x, int bits) { return x >> bits | x << (32 - bits); }

static inline uint32_t big_endian(const uint8_t *bytes) {
    return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 | bytes[3];
}

/* One round; the caller names the variables anew instead of moving their values. */
static inline void turn(
    uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f, uint32_t g,
    uint32_t *h, uint32_t word) {
    uint32_t sum = *h + word + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25));
    sum += (e & f) ^ (~e & g);
    *d += sum;
    *h = sum + (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
}

static void blocks_anywhere(uint32_t state[8], const uint8_t *bytes, size_t blocks) {
    uint32_t w[64];
    for (; blocks; blocks--, bytes += BLOCK) {
        for (int t = 0; t < 16; t++) w[t] = big_endian(bytes + 4 * t);
        for (int t = 16; t < 64; t++) {
            uint32_t x = w[t - 15], y = w[t - 2];
            x = rotated(x, 7) ^ rotated(x, 18) ^ x >> 3;
            y = rotated(y, 17) ^ rotated(y, 19) ^ y >> 10;
            w[t] = w[t - 16] + x + w[t - 7] + y;
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        const uint32_t *k = round_constants;
        for (int t = 0; t < 64; t += 8) {
            turn(a, b, c, &d, e, f, g, &h, w[t] + k[t]);
            turn(h, a, b, &c, d, e, f, &g, w[t + 1] + k[t + 1]);
            turn(g, h, a, &b, c, d, e, &f, w[t + 2] + k[t + 2]);
            turn(f, g, h, &a, b, c, d, &e, w[t + 3] + k[t + 3]);
            turn(e, f, g, &h, a, b, c, &d, w[t + 4] + k[t + 4]);
            turn(d, e, f, &g, h, a, b, &c, w[t + 5] + k[t + 5]);
            turn(c, d, e, &f, g, h, a, &b, w[t + 6] + k[t + 6]);
            turn(b, c, d, &e, f, g, h, &a, w[t + 7] + k[t + 7]);
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

/* -- x86-64 with SHA extensions ---------------------------------------------------------------- */

#if defined(__x86_64__)
#define HAS_FAST 1
#define FAST __attribute__((target("sha,sse4.1,ssse3")))

/* Four rounds with words `w`. `abef` and `cdgh` are the state as the instructions take it. */
FAST static inline void four(__m128i *abef, __m128i *cdgh, __m128i w, const uint32_t *k) {
    __m128i sum = _mm_add_epi32(w, _mm_load_si128((const __m128i *)k));
    *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, sum);
    *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(sum, 0x0e));
}

/* The four words that follow sixteen. */
FAST static inline __m128i next(__m128i w0, __m128i w4, __m128i w8, __m128i w12) {
    __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w4), _mm_alignr_epi8(w12, w8, 4));
    return _mm_sha256msg2_epu32(sum, w12);
}

FAST static inline __m128i words(const uint8_t *bytes) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)bytes), swap);
}

FAST static void blocks_fast(uint32_t state[8], const uint8_t *bytes, size_t blocks) {
    /* From the lowest lane: b a d c and f e h g, then f e b a and h g d c. */
    __m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)state), 0xb1);
    __m128i fehg = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(state + 4)), 0xb1);
    __m128i abef = _mm_unpacklo_epi64(fehg, badc), cdgh = _mm_unpackhi_epi64(fehg, badc);
    for (; blocks; blocks--, bytes += BLOCK) {
        __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w0 = words(bytes), w4 = words(bytes + 16);
        __m128i w8 = words(bytes + 32), w12 = words(bytes + 48);
        for (int t = 0;; t += 16) {
            const uint32_t *k = round_constants + t;
            four(&abef, &cdgh, w0, k);
            four(&abef, &cdgh, w4, k + 4);
            four(&abef, &cdgh, w8, k + 8);
            four(&abef, &cdgh, w12, k + 12);
            if (t == 48) break;
            w0 = next(w0, w4, w8, w12);
            w4 = next(w4, w8, w12, w0);
            w8 = next(w8, w12, w0, w4);
            w12 = next(w12, w0, w4, w8);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    badc = _mm_unpackhi_epi64(abef, cdgh), fehg = _mm_unpacklo_epi64(abef, cdgh);
    _mm_storeu_si128((__m128i *)state, _mm_shuffle_epi32(badc, 0xb1));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_shuffle_epi32(fehg, 0xb1));
}

/* Asked of the CPU itself: __builtin_cpu_supports knows `sha` in newer compilers only. */
static bool cpu_is_fast(void) {
    unsigned a, b, c, d;
    bool shuffles = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_SSSE3) && (c & bit_SSE4_1);
    return shuffles && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & 1u << 29);
}

/* -- ARMv8 with cryptographic extensions ------------------------------------------------------- */

#elif defined(__aarch64__) && defined(__linux__) && defined(__ARM_NEON)
#define HAS_FAST 1
#if defined(__clang__)
#define FAST __attribute__((target("sha2")))
#else
#define FAST __attribute__((target("+crypto")))
#endif
#ifndef HWCAP_SHA2
#define HWCAP_SHA2 (1 << 6) /* Source: Linux, arch/arm64/include/uapi/asm/hwcap.h */
#endif

FAST static inline void four(
    uint32x4_t *abcd, uint32x4_t *efgh, uint32x4_t w, const uint32_t *k) {
    uint32x4_t sum = vaddq_u32(w, vld1q_u32(k)), before = *abcd;
    *abcd = vsha256hq_u32(before, *efgh, sum);
    *efgh = vsha256h2q_u32(*efgh, before, sum);
}

FAST static inline uint32x4_t next(
    uint32x4_t w0, uint32x4_t w4, uint32x4_t w8, uint32x4_t w12) {
    return vsha256su1q_u32(vsha256su0q_u32(w0, w4), w8, w12);
}

FAST static inline uint32x4_t words(const uint8_t *bytes) {
    return vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(bytes)));
}

FAST static void blocks_fast(uint32_t state[8], const uint8_t *bytes, size_t blocks) {
    uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
    for (; blocks; blocks--, bytes += BLOCK) {
        uint32x4_t abcd_before = abcd, efgh_before = efgh;
        uint32x4_t w0 = words(bytes), w4 = words(bytes + 16);
        uint32x4_t w8 = words(bytes + 32), w12 = words(bytes + 48);
        for (int t = 0;; t += 16) {
            const uint32_t *k = round_constants + t;
            four(&abcd, &efgh, w0, k);
            four(&abcd, &efgh, w4, k + 4);
            four(&abcd, &efgh, w8, k + 8);
            four(&abcd, &efgh, w12, k + 12);
            if (t == 48) break;
            w0 = next(w0, w4, w8, w12);
            w4 = next(w4, w8, w12, w0);
            w8 = next(w8, w12, w0, w4);
            w12 = next(w12, w0, w4, w8);
        }
        abcd = vaddq_u32(abcd, abcd_before);
        efgh = vaddq_u32(efgh, efgh_before);
    }
    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}

static bool cpu_is_fast(void) { return getauxval(AT_HWCAP) & HWCAP_SHA2; }
#endif

/* -- whole messages ---------------------------------------------------------------------------- */

static blocks_t fastest(void) {
#ifdef HAS_FAST
    if (cpu_is_fast()) return blocks_fast;
#endif
    return blocks_anywhere;
}

static void digest_by(
    blocks_t take_blocks, const void *message, size_t count, unsigned char digest[32]) {
    uint32_t state[8] = {
        0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
    };
    take_blocks(state, message, count / BLOCK);
    /* What is left, a one, zeros, and the length in bits: one block, or two. */
    uint8_t end[2 * BLOCK] = {0};
    size_t left = count % BLOCK, bytes = left + 9 > BLOCK ? 2 * BLOCK : BLOCK;
    if (left) memcpy(end, (const uint8_t *)message + (count - left), left);
    end[left] = 0x80;
    for (int i = 0; i < 8; i++) end[bytes - 1 - i] = (uint8_t)((uint64_t)count * 8 >> 8 * i);
    take_blocks(state, end, bytes / BLOCK);
    for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
}

void sha256(const void *bytes, size_t count, unsigned char digest[32]) {
    digest_by(fastest(), bytes, count, digest);
}
