// A plain ViT in INT8, from pixel values to logits or to what its layers make, for packing.py: memory, threads and the order of the steps that an
// instruction set has (steps.h, isa/). Images of a batch go through a step together, as many as fit a cache.
//
// A step of a layer is a number of pieces. Each thread has a range of them, and takes of the others' when its own are
// done: a thread whose core is taken by another program holds up no more than the pieces that it has begun.

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif
#include <unistd.h>

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

#include "isa/table.h"

namespace {

using namespace kernels;

size_t up(size_t size, int unit) { return (size + unit - 1) / unit * unit; }

template <class T>
using Room = std::unique_ptr<T[], void (*)(void*)>;

// Memory of `count` values, of zeros, at an address for vectors; std::bad_alloc where there is none.
template <class T>
Room<T> room(size_t count, int alignment) {
    const size_t bytes = up(count * sizeof(T), alignment);
    void* found = std::aligned_alloc(alignment, bytes);
    if (found == nullptr) throw std::bad_alloc();
    std::memset(found, 0, bytes);
    return {static_cast<T*>(found), std::free};
}


struct Inputs {  // of Linears
    Room<uint8_t> bytes;
    Room<float> floats;  // where one was left out of INT8
    Inputs(size_t values, bool exact, int alignment)
        : bytes(room<uint8_t>(values, alignment)), floats(room<float>(exact ? values : 1, alignment)) {}
    Rows rows() const { return {bytes.get(), floats.get()}; }
};

struct Work {  // of one thread
    Room<float> keys, values, scores;
    Room<uint8_t> bytes;
    Room<int32_t> sums;
    Work(const Attention& a, const Tile& tile, bool in_bytes)
        : keys(room<float>(static_cast<size_t>(a.head) * a.padded, tile.alignment)),
          values(room<float>(static_cast<size_t>(a.head) * a.padded, tile.alignment)),
          scores(room<float>(static_cast<size_t>(tile.rows) * a.padded, tile.alignment)),
          bytes(room<uint8_t>(in_bytes ? size_t{2} * a.head * a.padded + tile.rows * (a.padded + a.head) : 1,
                              tile.alignment)),
          sums(room<int32_t>(in_bytes ? a.padded + a.head : 1, tile.alignment)) {}
    Scratch scratch() const { return {keys.get(), values.get(), scores.get(), bytes.get(), sums.get()}; }
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
    int read;                                // how many of an image's tokens, from the first on, are read of the last layer
};

// Of the activations of images that go together, if they are several. More would share weights among more images, and wait
// longer for activations that have left the caches.
constexpr size_t kMostBytes = size_t{8} << 20;

// What the steps make of some images: lines (images, patches, inputs of one), x (images, tokens, line), qkv (images,
// tokens, 3, part), gates (images, tokens, hidden), and what Linears read, (images, tokens, inputs).
struct Activations {
    int images;
    Room<float> lines, x, qkv, gates;
    Inputs normal, context, raised;
};

// One go through the layers. Threads have copies of it: one that is late finds what is still true of its own.
struct Pass {
    const float* pixels;
    float* out;
    int images;
    float *lines, *x, *qkv, *gates;
    Rows normal, context, raised;
};

// Pixels (images, channels, height, width) -> lines (images, patches, inputs). A piece is a patch.
void cut(const float* pixels, const Patches& p, float* lines, Pieces pieces) {
    const size_t width = static_cast<size_t>(p.across) * p.side_x, height = static_cast<size_t>(p.down) * p.side_y;
    const int patches = p.down * p.across;
    for (int piece = pieces.first; piece < pieces.last; piece++) {
        const int n = piece % patches;
        const float* image = pixels + piece / patches * (p.channels * height * width);
        const float* corner = image + n / p.across * p.side_y * width + n % p.across * p.side_x;
        float* line = lines + static_cast<size_t>(piece) * p.channels * p.side_y * p.side_x;
        for (int c = 0; c < p.channels; c++)
            for (int y = 0; y < p.side_y; y++, line += p.side_x)
                std::memcpy(line, corner + (c * height + y) * width, sizeof(float) * p.side_x);
    }
}

class Encoder {
   public:
    Encoder(const InstructionSet& isa, const Shape& shape, const Layer* layers, const Norm& last,
            const Patches& patches, const Classifier& classifier, int threads)
        : steps_(*isa.steps),
          tile_(isa.tile),
          width_(shape.width),
          line_(static_cast<int>(up(shape.width, tile_.columns))),
          hidden_(shape.hidden),
          read_(shape.read),
          threads_(threads),
          count_(patches.down * patches.across),
          attention_{patches.first + count_, shape.heads, shape.head,
                     static_cast<int>(up(shape.heads * shape.head, tile_.columns)),
                     static_cast<int>(up(patches.first + count_, tile_.lanes))},
          layers_(layers, layers + shape.layers),
          last_(last),
          patches_(patches),
          classifier_(classifier),
          number_(kFront + kOfLayer * shape.layers + kBack),
          counts_(new Count[static_cast<size_t>(number_) * (threads + 1)]) {
        activations_ = activations(1);
        const bool in_bytes = any([](const Layer& each) { return each.factors.query != 0; });
        for (int t = 0; t < threads; t++) work_.emplace_back(attention_, tile_, in_bytes);
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

    // Whether this is a fork of the process that made it: the threads are not there, and a lock may be held for ever.
    bool forked() const { return process_ != getpid(); }

    // Pixels (images, channels, height, width) -> `out`, `size` values an image, in passes of about as many images each.
    void run(const float* pixels, int images, size_t image, float* out, size_t size) {
        if (images < 1) return;
        const int most = make_room(images), passes = (images + most - 1) / most;
        const Activations& a = *activations_;
        for (int i = 0, first = 0; i < passes; i++) {
            const int next = static_cast<int>(static_cast<int64_t>(images) * (i + 1) / passes);
            go({pixels + first * image, out + first * size, next - first, a.lines.get(), a.x.get(), a.qkv.get(),
                a.gates.get(), a.normal.rows(), a.context.rows(), a.raised.rows()});
            first = next;
        }
    }

   private:
    static constexpr int kFront = 3, kOfLayer = 9, kBack = 2;  // steps, at most

    const Steps& steps_;
    const Tile tile_;
    int width_, line_, hidden_, read_, threads_, count_;  // of patches
    Attention attention_;
    std::vector<Layer> layers_;
    Norm last_;
    Patches patches_;
    Classifier classifier_;
    int number_;                       // of steps
    std::unique_ptr<Count[]> counts_;  // of each step: the next piece of each thread's range, then the pieces done
    std::unique_ptr<Activations> activations_;
    std::vector<Work> work_;
    Pass pass_{};
    std::vector<std::thread> others_;
    std::mutex mutex_;
    std::condition_variable called_;
    uint32_t run_ = 0;
    const pid_t process_ = getpid();
    bool closed_ = false;
#ifdef __linux__
    cpu_set_t allowed_;
    int avoided_ = -1;
#endif

    size_t tokens() const { return attention_.tokens; }

    size_t pixels_of_patch() const { return static_cast<size_t>(patches_.channels) * patches_.side_y * patches_.side_x; }

    int tiles_of(int rows) const { return (rows + tile_.rows - 1) / tile_.rows; }

    template <class Which>
    bool any(Which which) const {
        return std::any_of(layers_.begin(), layers_.end(), [&](const Layer& layer) { return which(layer); });
    }

    bool gated() const {
        return any([](const Layer& each) { return each.gate.outputs > 0; });
    }

    std::unique_ptr<Activations> activations(int images) const {
        const size_t rows = images * tokens();
        const int unit = tile_.alignment;
        const bool normal = any([](const Layer& each) { return each.qkv.exact || each.fc1.exact; });
        const bool context = any([](const Layer& each) { return each.output.exact; });
        const bool raised = any([](const Layer& each) { return each.fc2.exact; });
        return std::unique_ptr<Activations>(new Activations{
            images, room<float>(pixels_of_patch() * count_ * images, unit), room<float>(rows * line_, unit),
            room<float>(rows * 3 * attention_.part, unit), room<float>(gated() ? rows * hidden_ : 1, unit),
            Inputs(rows * line_, normal, unit),
            Inputs(rows * attention_.part, context, unit), Inputs(rows * hidden_, raised, unit)});
    }

    // Makes room for so many images to go together, or for as many as may or as there is memory for; returns how many.
    int make_room(int images) {
        // without the floats of what was left out of INT8
        const size_t floats = line_ + 3 * attention_.part + (gated() ? hidden_ : 0);
        const size_t row = sizeof(float) * floats + line_ + attention_.part + hidden_;
        const size_t image = sizeof(float) * pixels_of_patch() * count_ + tokens() * row;
        const int wanted = static_cast<int>(std::min<size_t>(images, std::max<size_t>(kMostBytes / image, 1)));
        try {
            if (wanted > activations_->images) activations_ = activations(wanted);
        } catch (const std::bad_alloc&) {  // then as before
        }
        return std::min(wanted, activations_->images);
    }

    void go(const Pass& pass) {
        uint32_t now;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            now = ++run_;
            for (int i = 0; i < number_ * (threads_ + 1); i++) counts_[i].begin(now);
            pass_ = pass;
        }
        keep_off();
        called_.notify_all();
        share(0, now, pass);
    }

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
                relax();
            else
                std::this_thread::sleep_for(std::chrono::microseconds(20));
        }
    }

    // One thread's part of a pass.
    void share(int thread, uint32_t run, const Pass& at) {
        const NoDenormals now;
        const int tokens = attention_.tokens, part = attention_.part;
        const Choice every{at.images * tokens, 1}, firsts{at.images, tokens};  // all tokens, and the first of each image
        const Rows itself{nullptr, at.x};
        const Scratch scratch = work_[thread].scratch();
        int number = 0;
        const auto all = [&](int pieces, int chunk, auto work) {
            return step(thread, run, number++, pieces, chunk, work);
        };
        const auto columns = [&](int count, int rows) { return count / tile_.columns * tiles_of(rows); };
        const auto embed = [&](Pieces p) { steps_.embed(at.lines, patches_, at.images, line_, at.x, p); };
        if (!all(at.images * count_, 16, [&](Pieces p) { cut(at.pixels, patches_, at.lines, p); })) return;
        if (!all(columns(line_, at.images * count_), 4, embed)) return;
        const auto begin = [&](Pieces p) { steps_.normalise[true](at.x, width_, line_, patches_.norm, {}, itself, 1, p); };
        if (patches_.norm.weight != nullptr && !all(every.rows, 16, begin)) return;
        for (size_t i = 0; i < layers_.size(); i++) {
            const Layer& layer = layers_[i];
            const bool one = read_ == 1 && i + 1 == layers_.size();
            const Choice rows = one ? firsts : every;
            const int queries = one ? 1 : tokens;
            const auto normalise = [&](const Norm* norm, const Linear* next, int apart) {
                return [=](Pieces p) {
                    steps_.normalise[next->exact != nullptr](at.x, width_, line_, *norm, *next, at.normal, apart, p);
                };
            };
            const auto product = [&](Then then, const Rows& from, Choice rows, const Linear* w, int first, float* out) {
                return [=](Pieces p) {
                    steps_.product[static_cast<int>(then)](from, rows, *w, first, out, at.raised, &layers_[i].fc2, p);
                };
            };
            const auto attend = [&](Pieces p) {
                const bool exact = layer.output.exact != nullptr;
                if (layer.factors.query == 0)
                    steps_.attend[exact](at.qkv, attention_, queries, layer.output, at.context, scratch, p);
                else
                    steps_.attend_bytes[exact](at.qkv, attention_, queries, layer.factors, layer.output, at.context,
                                               scratch, p);
            };
            const bool gate = layer.gate.outputs > 0, curve = layer.fc2.steep != 0;
            const Then bent = layer.fc2.exact ? (gate ? Then::kGateExact : curve ? Then::kCurveExact : Then::kGeluExact)
                                              : (gate ? Then::kGate : curve ? Then::kCurve : Then::kGelu);
            const int tiles = tiles_of(queries);
            const bool whole =
                all(every.rows, 16, normalise(&layer.before, &layer.qkv, 1)) &&
                all(columns(part, rows.rows), 4, product(Then::kStore, at.normal, rows, &layer.qkv, 0, at.qkv)) &&
                all(columns(2 * part, every.rows), 4,
                    product(Then::kStore, at.normal, every, &layer.qkv, part, at.qkv)) &&
                all(at.images * attention_.heads * tiles, tiles, attend) &&
                all(columns(line_, rows.rows), 4, product(Then::kAdd, at.context, rows, &layer.output, 0, at.x)) &&
                all(rows.rows, 16, normalise(&layer.after, &layer.fc1, rows.apart)) &&
                (!gate || all(columns(hidden_, rows.rows), 4,
                              product(Then::kStore, at.normal, rows, &layer.gate, 0, at.gates))) &&
                all(columns(hidden_, rows.rows), 4, product(bent, at.normal, rows, &layer.fc1, 0, at.gates)) &&
                all(columns(line_, rows.rows), 4, product(Then::kAdd, at.raised, rows, &layer.fc2, 0, at.x));
            if (!whole) return;
        }
        if (classifier_.classes == 0) {
            all(at.images * read_, 64, [&](Pieces p) { copy(at, p); });
            return;
        }
        const auto end = [&](Pieces p) { steps_.normalise[true](at.x, width_, line_, last_, {}, itself, tokens, p); };
        const auto classify = [&](Pieces p) { steps_.classify(at.x, firsts, classifier_, line_, at.out, p); };
        if (all(at.images, 1, end)) all(classifier_.classes, 16, classify);
    }

    // What is read of x (images, tokens, line) -> (images, read, width). A piece is a token.
    void copy(const Pass& at, Pieces pieces) const {
        for (int piece = pieces.first; piece < pieces.last; piece++) {
            const size_t row = piece / read_ * tokens() + piece % read_;
            std::memcpy(at.out + static_cast<size_t>(piece) * width_, at.x + row * line_, sizeof(float) * width_);
        }
    }

    void serve(int thread) {
        for (uint32_t seen = 0;;) {
            std::unique_lock<std::mutex> lock(mutex_);
            called_.wait(lock, [&] { return closed_ || run_ != seen; });
            if (closed_) return;
            seen = run_;
            const Pass pass = pass_;
            lock.unlock();
            share(thread, seen, pass);
        }
    }
};

}  // namespace

extern "C" {
#pragma GCC visibility push(default)

// An instruction set of this build by its place, the fastest first; null behind the last.
const InstructionSet* encoder_isa(int number) { return instruction_set(number); }

// What packing.py has to agree with: the size of a layer's constants.
size_t encoder_layer_size() { return sizeof(Layer); }

// Null where there is no memory, or no thread, for it. Weights are not copied: they have to outlive it.
Encoder* encoder_open(const InstructionSet* isa, const Shape* shape, const Layer* layers, const Norm* last,
                      const Patches* patches, const Classifier* classifier, int threads) {
    try {
        return new Encoder(*isa, *shape, layers, *last, *patches, *classifier, threads);
    } catch (const std::exception&) {
        return nullptr;
    }
}

// Pixels (images, channels, height, width) float32 -> logits (images, classes), or (images, read, width) of the last layer:
// `size` values an image. One call at a time.
void encoder_run(Encoder* encoder, const float* pixels, int images, size_t image, float* out, size_t size) {
    encoder->run(pixels, images, image, out, size);
}

// In a fork of the process that opened it nothing is freed: that would wait for threads that are not there.
void encoder_close(Encoder* encoder) {
    if (!encoder->forked()) delete encoder;
}

#pragma GCC visibility pop
}
