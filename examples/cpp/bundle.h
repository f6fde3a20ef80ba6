// What a program needs of a bundle's manifest.json: which file to run, and what its logits mean.
// Uses nlohmann's JSON for C++ (Debian: nlohmann-json3-dev).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

struct Bundle {
    nlohmann::json manifest;
    std::string task;  // what the logits mean
    std::filesystem::path file;  // the form or engine to run

    // `where` is a bundle's folder, and the first artifact of the kind that `wanted` accepts is taken; or it is a file
    // in one, which the manifest must describe.
    template <typename Wanted>
    Bundle(std::filesystem::path where, Wanted wanted) {
        std::filesystem::path folder = where, name;
        if (!std::filesystem::is_directory(where)) {
            while (folder.has_relative_path() && !std::filesystem::exists(folder / "manifest.json"))
                folder = folder.parent_path();
            name = std::filesystem::relative(where, folder.empty() ? "." : folder);
        }
        std::ifstream text(folder / "manifest.json");
        if (!text) throw std::runtime_error(where.string() + ": no bundle, nor a file in one (no manifest.json)");
        manifest = nlohmann::json::parse(text);
        task = manifest.value("task", "single_label");
        if (task == "embedding")
            throw std::runtime_error(where.string() + " gives an embedding, one vector an image, and no classes");
        for (const auto& artifact : manifest.at("artifacts"))
            if (file.empty() && (name.empty() ? wanted(artifact) : artifact.at("path") == name.generic_string()))
                file = folder / artifact.at("path").get<std::string>();
        if (file.empty()) throw std::runtime_error(where.string() + ": the manifest describes no such file");
        if (std::filesystem::file_size(file) == 0) throw std::runtime_error(file.string() + " is empty");
    }

    // Prints the best classes with their scores: softmax for one class an image, a sigmoid where several may be right,
    // and then "yes" behind those that the image has: their score reaches the threshold.
    void print_best(const float* logits, size_t count, size_t most = 5) const {
        const auto& labels = manifest.at("labels");
        if (labels.size() != count) throw std::runtime_error("the manifest names more or fewer classes than the model");
        for (size_t index = 0; index < count; ++index)
            if (!std::isfinite(logits[index])) throw std::runtime_error("the model gives scores that are not finite");
        const bool several = task == "multi_label" || task == "binary";
        const double threshold = manifest.value("threshold", 0.5);
        std::vector<double> scores(logits, logits + count);
        if (task == "single_label") {
            const double highest = *std::max_element(scores.begin(), scores.end());
            for (double& score : scores) score = std::exp(score - highest);
            const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
            for (double& score : scores) score /= sum;
        } else if (several || task == "single_label_sigmoid") {
            for (double& score : scores) score = 1 / (1 + std::exp(-score));
        } else if (task != "regression") {
            throw std::runtime_error("what the model answers, " + task + ", is not known to this program");
        }
        std::vector<size_t> order(count);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
        for (size_t place = 0; place < std::min(most, count); ++place)
            std::printf("%s\t%.6f%s\n", labels[order[place]].get<std::string>().c_str(), scores[order[place]],
                        several && scores[order[place]] >= threshold ? "\tyes" : "");
    }
};

// What `run` returns; 1 after an error, which is printed.
inline int reporting_errors(int (*run)(int, char**), int count, char** arguments) {
    try {
        return run(count, arguments);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "Error: %s\n", error.what());
        return 1;
    }
}
