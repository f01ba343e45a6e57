# state: scikit-learn and OpenMP
# end: killed
# needs: scikit-learn, threadpoolctl

# %%
import numpy, sklearn.ensemble, sklearn.linear_model, sklearn.cluster, threadpoolctl

rng = numpy.random.default_rng(0)
x = rng.random((200, 5))
y = (x.sum(axis=1) > 2.5).astype(int)
print(
    sklearn.linear_model.LogisticRegression().fit(x, y).score(x, y),
    sklearn.ensemble.HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(x, y).score(x, y),
)
print(
    sklearn.ensemble.RandomForestClassifier(10, n_jobs=2, random_state=0).fit(x, y).score(x, y),
    sorted(sklearn.cluster.KMeans(2, n_init=1, random_state=0).fit(x).labels_.tolist())[:1],
)
print(sorted((each["user_api"], each["num_threads"]) for each in threadpoolctl.threadpool_info()))
