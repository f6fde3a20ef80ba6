// A plain ViT in INT8, from pixel values to logits, for kernels.py: memory, threads and the order of the steps that
// steps.h has; one image after the other.
//
// A step of a layer is a number of pieces. Each thread has a range of them, and takes of the others' when its own are
// done: a thread whose core is taken by another program holds up no more than the pieces that it has begun.

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "steps.h"

namespace {

template <class T>
using Room = std::unique_ptr<T[], void (*)(void*)>;

// Memory of `count` values, of zeros, at an address for vectors; std::bad_alloc where there is none.
template <class T>
Room<T> room(size_t count) {
    const size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
    void* found = std::aligned_alloc(64, bytes);
    if (found == nullptr) throw std::bad_alloc();
    std::memset(found, 0, bytes);
    return {static_cast<T*>(found), std::free};
}

struct Inputs {  // of Linears
    Room<uint8_t> bytes;
    Room<float> floats;
    Inputs(int rows, int columns)
        : bytes(room<uint8_t>(static_cast<size_t>(rows) * columns)),
          floats(room<float>(static_cast<size_t>(rows) * columns)) {}
    Rows rows() const { return {bytes.get(), floats.get()}; }
};

struct Work {  // of one thread
    Room<float> keys, values, scores;
    Work(const Attention& a)
        : keys(room<float>(static_cast<size_t>(a.head) * a.padded())),
          values(room<float>(static_cast<size_t>(a.head) * a.padded())),
          scores(room<float>(static_cast<size_t>(kRows) * a.padded())) {}
};

// Denormals are zeros while it lives: a softmax has many, and each costs 150 cycles.
struct NoDenormals {
    const unsigned before = _mm_getcsr();
    NoDenormals() { _mm_setcsr(before | 0x8040); }
    ~NoDenormals() { _mm_setcsr(before); }
};

// A count that belongs to one run: what a thread that is late by one reads of it tells it so.
class Count {
   public:
    void begin(uint32_t run) { value_.store(static_cast<uint64_t>(run) << 32); }
    // Its number, or -1 if another run has it.
    int of(uint32_t run) const {
        const uint64_t value = value_.load();
        return value >> 32 == run ? static_cast<int>(value & 0xffffffff) : -1;
    }
    bool move(uint32_t run, int from, int to) {
        uint64_t before = static_cast<uint64_t>(run) << 32 | static_cast<uint32_t>(from);
        return value_.compare_exchange_strong(before, before + static_cast<uint32_t>(to - from));
    }
    void add(int number) { value_.fetch_add(static_cast<uint32_t>(number)); }

   private:
    alignas(64) std::atomic<uint64_t> value_{0};
};

struct Shape {
    int width, hidden, heads, head, layers;  // width alone is not padded
};

class Encoder {
   public:
    Encoder(const Shape& shape, const Layer* layers, const Norm& last, const Patches& patches,
            const Classifier& classifier, int threads)
        : width_(shape.width),
          line_((shape.width + 63) / 64 * 64),
          hidden_(shape.hidden),
          threads_(threads),
          attention_{patches.first + patches.count(), shape.heads, shape.head,
                     (shape.heads * shape.head + 63) / 64 * 64},
          layers_(layers, layers + shape.layers),
          last_(last),
          patches_(patches),
          classifier_(classifier),
          lines_(room<float>(static_cast<size_t>(patches.count() + kRows) * patches.inputs())),
          x_(room<float>(static_cast<size_t>(attention_.tokens) * line_)),
          qkv_(room<float>(attention_.tokens * attention_.line())),
          made_(room<float>(line_)),
          normal_(attention_.tokens, line_),
          context_(attention_.tokens, attention_.part),
          raised_(attention_.tokens, hidden_),
          steps_(kFront + kOfLayer * shape.layers),
          counts_(new Count[static_cast<size_t>(steps_) * (threads + 1)]) {
        for (int t = 0; t < threads; t++) work_.emplace_back(attention_);
#ifdef __linux__
        if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) CPU_ZERO(&allowed_);
#endif
        try {
            for (int t = 1; t < threads; t++) others_.emplace_back(&Encoder::serve, this, t);
        } catch (...) {
            close();
            throw;
        }
    }

    ~Encoder() { close(); }

    // Pixels (channels, height, width) -> logits (classes).
    void run(const float* pixels, float* logits) {
        uint32_t now;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            now = ++run_;
            for (int i = 0; i < steps_ * (threads_ + 1); i++) counts_[i].begin(now);
            pixels_ = pixels;
        }
        keep_off();
        called_.notify_all();
        share(0, now);
        const Linear exact{0, 0, nullptr, nullptr, nullptr, 0, 0, classifier_.weights};
        normalise<true>(x_.get(), width_, line_, last_, exact, {nullptr, made_.get()}, {0, 1});
        for (int c = 0; c < classifier_.classes; c++) {
            const float* weights = classifier_.weights + static_cast<size_t>(c) * line_;
            __m512 sum = _mm512_setzero_ps();
            for (int i = 0; i < line_; i += 16)
                sum = _mm512_fmadd_ps(_mm512_loadu_ps(weights + i), _mm512_loadu_ps(made_.get() + i), sum);
            logits[c] = _mm512_reduce_add_ps(sum) + classifier_.bias[c];
        }
    }

   private:
    static constexpr int kFront = 2, kOfLayer = 8;  // steps

    int width_, line_, hidden_, threads_;
    Attention attention_;
    std::vector<Layer> layers_;
    Norm last_;
    Patches patches_;
    Classifier classifier_;
    Room<float> lines_, x_, qkv_, made_;
    Inputs normal_, context_, raised_;
    int steps_;
    std::unique_ptr<Count[]> counts_;  // of each step: the next piece of each thread's range, then the pieces done
    std::vector<Work> work_;
    const float* pixels_ = nullptr;
    std::vector<std::thread> others_;
    std::mutex mutex_;
    std::condition_variable called_;
    uint32_t run_ = 0;
    bool closed_ = false;
#ifdef __linux__
    cpu_set_t allowed_;
    int avoided_ = -1;
#endif

    // Keeps the others off the core that this thread is on. Linux likes to wake them there, and then they wait for it
    // until the next balancing of cores, which is longer than a small model takes.
    void keep_off() {
#ifdef __linux__
        const int core = sched_getcpu();
        if (core == avoided_ || core < 0 || CPU_COUNT(&allowed_) < 2) return;
        cpu_set_t rest = allowed_;
        CPU_CLR(core, &rest);
        for (std::thread& other : others_) pthread_setaffinity_np(other.native_handle(), sizeof rest, &rest);
        avoided_ = core;
#endif
    }

    void close() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            closed_ = true;
        }
        called_.notify_all();
        for (std::thread& other : others_) other.join();
        others_.clear();
    }

    // Does pieces of a step, `chunk` at a time, and waits until all are done; false if the run is over without it.
    template <class Do>
    bool step(int thread, uint32_t run, int number, int pieces, int chunk, Do work) {
        Count* counts = counts_.get() + static_cast<size_t>(number) * (threads_ + 1);
        Count& done = counts[threads_];
        const auto border = [&](int64_t owner) { return static_cast<int>(pieces * owner / threads_); };
        for (int i = 0; i < threads_; i++) {
            const int owner = (thread + i) % threads_, first = border(owner), count = border(owner + 1) - first;
            int mine = 0;
            for (;;) {
                const int at = counts[owner].of(run), to = std::min(at + chunk, count);
                if (at < 0) return false;
                if (at >= count) break;
                if (!counts[owner].move(run, at, to)) continue;
                work(Pieces{first + at, first + to});
                mine += to - at;
            }
            if (mine > 0) done.add(mine);
        }
        // Who waits long sleeps: its core may be what the thread needs that it waits for.
        for (int turn = 0;; turn++) {
            const int ready = done.of(run);
            if (ready == pieces) return true;
            if (ready < 0) return false;
            if (turn < 3000)
                _mm_pause();
            else
                std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
    }

    // One thread's part of a run.
    void share(int thread, uint32_t run) {
        const NoDenormals now;
        const int tokens = attention_.tokens, part = attention_.part;
        float *x = x_.get(), *qkv = qkv_.get();
        const Rows normal = normal_.rows(), context = context_.rows(), raised = raised_.rows(), &unused = normal;
        const Scratch scratch{work_[thread].keys.get(), work_[thread].values.get(), work_[thread].scores.get()};
        int number = 0;
        const auto all = [&](int pieces, int chunk, auto work) {
            return step(thread, run, number++, pieces, chunk, work);
        };
        const auto columns = [](int count, int rows) { return count / kColumns * tiles_of(rows); };
        const float* pixels = pixels_;
        if (!all(patches_.count(), 16, [&](Pieces p) { cut(pixels, patches_, lines_.get(), p); })) return;
        if (!all(columns(line_, patches_.count()), 4, [&](Pieces p) { embed(lines_.get(), patches_, line_, x, p); }))
            return;
        for (size_t i = 0; i < layers_.size(); i++) {
            const Layer& layer = layers_[i];
            const int rows = i + 1 == layers_.size() ? 1 : tokens;  // a classifier reads one token of the last layer
            const auto norm = layer.qkv.exact ? normalise<true> : normalise<false>;
            const auto norm_after = layer.fc1.exact ? normalise<true> : normalise<false>;
            const auto mix = layer.output.exact ? attend<true> : attend<false>;
            const auto raise = layer.fc2.exact ? product<Then::kGeluExact> : product<Then::kGelu>;
            const auto queries = [&](Pieces p) {
                product<Then::kStore>(normal, rows, layer.qkv, 0, qkv, unused, nullptr, p);
            };
            const auto rest = [&](Pieces p) {
                product<Then::kStore>(normal, tokens, layer.qkv, part, qkv, unused, nullptr, p);
            };
            const auto attention = [&](Pieces p) { mix(qkv, attention_, rows, layer.output, context, scratch, p); };
            const auto output = [&](Pieces p) {
                product<Then::kAdd>(context, rows, layer.output, 0, x, unused, nullptr, p);
            };
            const auto fc1 = [&](Pieces p) { raise(normal, rows, layer.fc1, 0, x, raised, &layer.fc2, p); };
            const auto fc2 = [&](Pieces p) { product<Then::kAdd>(raised, rows, layer.fc2, 0, x, unused, nullptr, p); };
            const bool whole =
                all(tokens, 16, [&](Pieces p) { norm(x, width_, line_, layer.before, layer.qkv, normal, p); }) &&
                all(columns(part, rows), 4, queries) && all(columns(2 * part, tokens), 4, rest) &&
                all(attention_.heads * tiles_of(rows), tiles_of(rows), attention) &&
                all(columns(line_, rows), 4, output) &&
                all(rows, 16, [&](Pieces p) { norm_after(x, width_, line_, layer.after, layer.fc1, normal, p); }) &&
                all(columns(hidden_, rows), 4, fc1) && all(columns(line_, rows), 4, fc2);
            if (!whole) return;
        }
    }

    void serve(int thread) {
        for (uint32_t seen = 0;;) {
            std::unique_lock<std::mutex> lock(mutex_);
            called_.wait(lock, [&] { return closed_ || run_ != seen; });
            if (closed_) return;
            seen = run_;
            lock.unlock();
            share(thread, seen);
        }
    }
};

}  // namespace

extern "C" {

// Null where there is no memory, or no thread, for it. Weights are not copied: they have to outlive it.
Encoder* encoder_open(const Shape* shape, const Layer* layers, const Norm* last, const Patches* patches,
                      const Classifier* classifier, int threads) {
    try {
        return new Encoder(*shape, layers, *last, *patches, *classifier, threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

// Pixels (images, channels, height, width) float32 -> logits (images, classes). One call at a time.
void encoder_run(Encoder* encoder, const float* pixels, int images, size_t image, float* logits, size_t classes) {
    for (int i = 0; i < images; i++) encoder->run(pixels + i * image, logits + i * classes);
}

void encoder_close(Encoder* encoder) { delete encoder; }
}
